"""Results: tables, pairs, statistics and states, read from the store."""
