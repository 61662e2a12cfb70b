"""`python -m moesim` is the console script."""

from moesim.cli import main

main()
