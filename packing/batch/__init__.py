"""The batch, the one type that crosses rooms."""
