"""Attention within segments: one function, five backends."""
