"""Diagnostics: checks of an installation, of methods, of the paper's claims, and of speed."""
