"""The agent of HAQ, and what it sees of a network."""
