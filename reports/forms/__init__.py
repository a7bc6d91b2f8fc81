"""The forms in which reports are shown.

`text` has the forms for the terminal, Markdown, LaTeX and CSV. `page` has one web page with sortable tables and
interactive charts, as `bench.reporting.pages` renders it. All forms show the same strings.
"""
