"""Runs whose folders are in object stores: they work in a copy here, which is sent with every checkpoint."""
