"""Faults and what becomes of studies that meet them: killed processes, full disks, damaged files, wrong clocks.

`python -m tests.faults.campaign` runs all of it, `test_faults.py` a small part of it with every test run.
"""
