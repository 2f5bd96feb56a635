"""What a model makes of one image at different budgets."""
