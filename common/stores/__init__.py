"""Objects in stores such as S3: read, listed, written and removed."""
