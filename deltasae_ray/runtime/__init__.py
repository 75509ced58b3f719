"""Runs units of work on gangs of processes, exactly once."""
