"""The built-in reports of a study, one module each.

A report builds tables and figures from a study's results; `bench.reporting.report` states that contract. `forms` turns
them into text and into a web page, and `shared` holds what several reports use.
"""
