"""Making and checking shards."""
