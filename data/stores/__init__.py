"""Web servers that shards are read from, and what becomes objects of a store."""
