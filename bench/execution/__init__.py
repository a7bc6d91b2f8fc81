"""Execution: brings the units of a plan to an outcome, several at once, each in a process of its own.

A `StudyRun` (`study_run`) is one command's work on a study. The `scheduler` runs its units. For each, a `supervisor`
sends a `UnitRequest` (`context`) to a process of its own, the `worker`. The worker makes a `UnitContext` (`context`),
and the `stages` do the work: pretraining, search, repair, fine-tuning. Calls go down in this order and never back up.
"""
