"""A model's run: its directory, folds, units of work, estimates, and reading it again."""
