"""Training and evaluation, and the checkpoints that let them continue."""
