"""Checks of the SBS paper's mathematics, for `bench verify`."""
