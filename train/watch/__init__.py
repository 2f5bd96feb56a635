"""Watching a run: numbers, pictures, checks."""
