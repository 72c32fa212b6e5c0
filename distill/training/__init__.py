"""The training loop, prediction of logits, and which moment of a training is kept."""

import distill.quick  # noqa: F401 - before what it imports quicker
