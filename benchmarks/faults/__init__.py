"""Faults for the chaos test and for tests: a web server that misbehaves, and what is done to a run."""
