"""Compression methods, one file each, and the building blocks that they share."""
