"""A search of a scenario's grid: a threshold or an optimum, from far fewer runs than all points.

A *threshold* is the value of one key from which on a metric meets a limit. It is found by
bisection, which checks that the metric is monotone. An *optimum* is the best point of the grid, or
with several objectives its Pareto front. Optuna chooses the points that are tried. The runs are
those of `moesim compare`, in the same folders.
"""
