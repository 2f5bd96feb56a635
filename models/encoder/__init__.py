"""The Transformer over segments of flat tokens; knows neither images nor batches."""
