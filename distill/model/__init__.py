"""Backbones: loading, quantising, adapters, the classifier's forward in packs or padded batches."""
