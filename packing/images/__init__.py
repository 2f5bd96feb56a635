"""Images as callers have them, and the batches that they make."""
