"""One optimizer step, and the state that it changes."""
