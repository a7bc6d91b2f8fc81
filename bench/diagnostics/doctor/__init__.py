"""`bench doctor`: what is wrong with a machine, an installation or a store, and what to do about it."""
