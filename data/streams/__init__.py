"""Streams of batches with an exact state, and the loader that brings them to the trainer."""
