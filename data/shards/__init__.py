"""Shards: names, fetching, the index of a tar file, reading."""
