"""Rows as tokens, planned into steps of equal cost and cut into packs without padding."""
