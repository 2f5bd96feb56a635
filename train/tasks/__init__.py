"""Tasks: what a run learns from, and its loss."""
