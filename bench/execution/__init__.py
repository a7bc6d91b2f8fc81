"""Execution: brings the units of a plan to an outcome, several at once, each in a process of its own.

A *study run* is one command's work on a study. For each unit its *scheduler* starts a *supervisor*. This one sends a
*unit request* to a process of its own, the *worker*. The worker makes a *unit context*, and the *stages* do the work:
pretraining, search, repair, fine-tuning. Calls go down through these modules in this order and never back up.
"""
