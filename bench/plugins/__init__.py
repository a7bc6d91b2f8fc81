"""Plug-ins: methods, models, data sets, reports and checks that the harness finds by name.

A plug-in is registered through an entry point (`entry_points`), or a method is named by its location, a file and a
class (`method_files`). `registry` loads both kinds; `source_hash` identifies their code.
"""
