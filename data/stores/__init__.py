"""Remote places that shards are read from and written to."""
