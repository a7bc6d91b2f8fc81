"""Planning: from a specification to the units of work that a study consists of.

A *unit* is a pretraining, a tuning, one trial of a tuning, or a run. Its *identity* is a hash of everything that its
numbers depend on. A *variant* is the study on one model, with at most one option changed. The *plan* lists the units of
all variants.
"""
