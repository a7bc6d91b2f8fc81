"""Presets: complete study specifications as TOML files."""
