"""Matching: how a method is tuned and repaired onto a budget."""
