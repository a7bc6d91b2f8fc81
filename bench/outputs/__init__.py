"""Output to people: commands that they can type, and texts of unknown origin that are safe in every form."""
