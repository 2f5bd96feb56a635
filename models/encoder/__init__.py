"""The Transformer over segments of flat tokens; it knows nothing of images or batches."""
