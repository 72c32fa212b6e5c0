"""Rows, sources, folds, templates, encoding and the soft-label store; needs no torch."""
