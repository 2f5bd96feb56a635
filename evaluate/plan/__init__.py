"""Which setting, or cascade of settings, a budget should buy."""
