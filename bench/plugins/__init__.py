"""Plug-ins: how methods, models, data sets and reports are found, and what identifies their code."""
