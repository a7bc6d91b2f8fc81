"""The store: files, locks and records of a study, and what keeps them in order."""
