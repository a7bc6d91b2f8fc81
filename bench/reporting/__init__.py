"""Reporting: tables, figures and comparisons, and the words that they use."""
