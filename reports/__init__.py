"""The built-in reports of a study, one module each, and the forms in which they are shown.

A report builds tables and figures from a study's results; `bench.reporting.report` states that contract. `renderers`
and `page` turn them into text and into one web page. What several reports share is in `shared`.
"""
