"""Faults, and how studies survive them: killed processes, full disks, damaged files, wrong clocks.

`python -m tests.faults.campaign` runs all of them, and `test_faults.py` a few with every test run.
"""
