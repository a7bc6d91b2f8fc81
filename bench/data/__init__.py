"""Data sets: what one must provide, the split, and batches on the training device."""
