"""The Python interface: studies, prices and networks for scripts and notebooks. The command line uses it too.

`from bench import Study` and the like load the names from here.
"""
