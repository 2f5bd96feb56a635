"""Validation during training: what it measures, and the best model so far."""
