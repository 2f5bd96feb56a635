"""Requests of `packvit eval` and `packvit.evaluate`: completed from a run, opened and carried out."""
