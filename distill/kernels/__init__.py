"""Attention and matrix products, checked against their formulas before use; knows nothing of models."""
