"""Attention and matrix products, checked against their formulas before use; knows nothing of models."""

import distill.quick  # noqa: F401 - before what it imports quicker
