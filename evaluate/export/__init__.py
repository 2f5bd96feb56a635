"""One artefact for every budget, which other programs run."""
