"""Models in files: ours, and other projects' weights."""
