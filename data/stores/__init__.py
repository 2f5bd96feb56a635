"""Places away from this machine that shards are read from and written to."""
