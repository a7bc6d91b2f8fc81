"""Execution: runs the units of a plan in processes of their own."""
