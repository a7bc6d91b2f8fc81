"""Matching of methods to budgets: `tune` finds the knobs of a method, `repair` moves a policy into the window.

A *trial* is one search at given *knobs*; the *strength* λ is the knob that trades cost against loss. Searches end near
their budget. *Repair* then changes the few *decisions* about which the search was least certain.
"""
