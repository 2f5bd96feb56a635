"""Loaders of several libraries that all do the same work; benchmarks/loaders.py compares them."""
