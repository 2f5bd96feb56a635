"""How a model processes the same images at different budgets."""
