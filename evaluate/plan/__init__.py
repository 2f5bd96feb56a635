"""The best setting, or cascade of settings, for a budget."""
