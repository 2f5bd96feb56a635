"""The corruptions of pixels, kind by kind."""
