"""Results of a study, read from the store: tables, groups of runs, statistics, and the state of every unit.

`StudyResults` in `tables` holds the numbers of one study. A `RunGroup` is the runs of one method and budget on one
task. A `Selection` is what a name on the command line stands for. A `UnitState` says how far one unit is.
"""
