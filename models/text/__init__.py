"""Texts beside images: their tower over packed tokens, both towers as one model, tokenisers."""
