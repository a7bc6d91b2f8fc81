"""`bench speed` and estimates: how long training steps and studies take."""
