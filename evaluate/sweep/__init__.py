"""One pass over a set of images at all settings: chunks, evaluators, costs."""
