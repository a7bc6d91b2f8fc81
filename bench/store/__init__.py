"""The store: the files in which a study keeps its results, and everything that keeps them in order.

A `Store` (`files`) is a folder with one folder for each unit of work and one for each study. A unit's *record* says how
far it is, and an `Outcome` (`outcomes`) how the work on it ended. A `Lease` (`leases`) says which process works on it.
A result is *stale* (`staleness`) when its method, model, data or cost counter has changed since.
"""
