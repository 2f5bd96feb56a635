"""Answers for images, streamed, at a chosen setting or plan."""
