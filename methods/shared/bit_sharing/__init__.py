"""Bit sharing: all candidate bits of a network in one set of weights (paper, Sections 3.1 and 3.2)."""
