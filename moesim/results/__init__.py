"""Results: the numbers and tables of a finished run."""
