"""Planning: from a specification to the units of work that a study consists of.

A `Unit` (`units`) is a pretraining, a tuning, one trial of a tuning, or a run. Its identity (`builder`) is a hash of
everything that its numbers depend on. A `Variant` (`variants`) is the study on one model, with at most one option
changed. A `Reach` (`budgets`) is what a method's networks can cost at a budget. The `Plan` (`plan`) lists the units of
all variants.
"""
