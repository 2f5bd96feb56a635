"""Validation on the way: what it measures, and the best model so far."""
