"""Packers: which views share a sequence, and which sequences share a batch. Integers only."""
