"""A model's run: its directory, folds, units of work, estimates, and reading it again."""

import distill.quick  # noqa: F401 - before what it imports quicker
