"""Texts in an evaluation: embedded once, as names of classes and as captions."""
