"""Schedules of presets, as TOML files."""
