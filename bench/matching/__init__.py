"""Matching of methods to budgets: `tune` finds the knobs of a method, `repair` moves a policy into the window.

A `Trial` (`trial`) is one search at given knobs. The *strength* λ is the knob that trades cost against loss; `sampling`
and `bracket` propose the next one to try. Searches end near their budget. A `Repair` (`repair`) then changes the few
decisions about which the search was least certain.
"""
