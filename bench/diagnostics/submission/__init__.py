"""`bench verify ARCHIVE`: checks of a study that somebody else ran, so that its rows can stand on a leaderboard.

An archive is not trusted. Its checksums show that it is as it was written, and nothing about what was written. The
checks compute again what can be computed again: ids, costs, choices of trials, checksums of data, tables, and on
request the accuracy of every network. No code that an archive names is loaded.
"""

from bench.diagnostics.submission.checks import Inspection, inspect
from bench.diagnostics.submission.submission import Submission, unpacked

__all__ = ["Inspection", "Submission", "inspect", "unpacked"]
