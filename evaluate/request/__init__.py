"""What `packvit eval` and `packvit.evaluate` are asked for, completed from a run, opened and carried out."""
