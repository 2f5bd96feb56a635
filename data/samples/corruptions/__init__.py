"""What corruptions do to pixels, kind by kind."""
