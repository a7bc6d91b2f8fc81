"""`bench doctor`: checks of this machine, the installation, the data sets and a store, each with a remedy.

`finding` defines a check and a `Finding`; `doctor` runs all checks, which the other modules list by subject.
"""
