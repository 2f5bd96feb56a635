"""One sample: decoded, mixed, cut, with its targets."""
