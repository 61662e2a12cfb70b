"""The compiled back end: stretches of steps, decided and timed by one compiled function."""
