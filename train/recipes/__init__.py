"""Recipes: each function is a whole run."""
