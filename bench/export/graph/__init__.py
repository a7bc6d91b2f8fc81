"""The graph of a network that is exported, and how it is read from a compressed network."""
