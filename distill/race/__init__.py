"""Backbones trained under one budget until the intervals part them."""
