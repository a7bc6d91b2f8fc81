"""Planning: which units of work a study consists of."""
