"""Building blocks that several reports use.

`formatting` turns figures into cells, `drawing` puts charts together, `limits` says which measures the budgets of a
study limit and which runs belong to each, and `commands` writes the commands that repeat runs. `comparison_rows` and
`comparison_notes` are the rows of the comparison and the lines below it.
"""
