"""Blends over rows that bring candidates of their own: read in the long layout, scored, kept and applied."""
