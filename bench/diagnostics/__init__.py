"""Diagnostics: checks of the installation, methods, archives and the paper's claims, and measurements of speed.

`doctor` checks an installation and its store, `validation` checks whether a method keeps its contract, `verify` checks
claims of the paper against this implementation, `submission` checks what an archive holds, and `speed` measures
training steps and estimates studies.
"""
