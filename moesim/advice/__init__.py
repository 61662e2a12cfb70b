"""Advice: will a model run on a machine, how fast, and with which flags?"""
