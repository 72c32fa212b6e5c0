"""The training loop, prediction of logits, and which moment of a training is kept."""
