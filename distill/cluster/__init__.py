"""Units of work on a Ray cluster."""
