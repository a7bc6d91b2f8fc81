"""Reporting: tables and figures of studies, comparisons of runs, forecasts of seeds, and the MLflow view.

A `Report` builds a `Section` of `Part`s, each a `Table` or a `Figure`. Several sections are a `Document`, which a
`Form` turns into text. `report` states these nouns, `wording` turns figures into text, and `mlflow` mirrors studies.
"""
