"""Configuration, training loop, evaluation and the command line. Nothing imports this folder."""
