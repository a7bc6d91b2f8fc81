"""The specification of a study: one immutable, typed tree, its sources, and the seeds that derive from it."""
