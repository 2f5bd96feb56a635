"""Exports that other programs can run, one for every budget."""
