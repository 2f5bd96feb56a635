"""Streamed predictions for images, at a chosen setting or plan."""
