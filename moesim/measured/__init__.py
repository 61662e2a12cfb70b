"""Throughputs that people measured on their own machines, and predictions of them.

A row says in words which model ran where and how; its measured value is kept apart, so that no
prediction can read it. See docs/measured.md.
"""

from moesim.measured.rows import Measured, Row, read_measured, read_rows

__all__ = ["Measured", "Row", "read_measured", "read_rows"]
