"""What a model makes of the same images at different budgets."""
