"""Time and memory of training steps, as `bench speed` measures them, and estimates of how long a study takes.

`config` states what is measured, `measure` runs the trainings side by side (`trainings`, `interleave`), and `rows`
holds the results. `estimate` and `preset_times` estimate the duration of studies.
"""
