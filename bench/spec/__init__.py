"""The specification of a study: its values, where they come from, and the seeds derived from it.

`schema` holds the immutable, typed tree (`StudySpec`); `sources` builds it from presets, TOML files, `--set` and flags;
`options` is the base class of all its parts and of every method's options; `seeds` derives random numbers.
"""
