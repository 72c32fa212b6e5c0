"""Routers: a cheap model on every row, dear ones where they are expected to pay, within a budget."""
