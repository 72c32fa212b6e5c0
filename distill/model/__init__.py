"""Backbones: loading, quantising, adapters, the classifier's forward in packs or padded batches."""

import distill.quick  # noqa: F401 - before what it imports quicker
