"""Check the accuracy of every run: its network is built again and evaluated on the test images."""

from bench.diagnostics.submission.submission import NotChecked, Submission, check_task, outcome
from bench.diagnostics.verify import CheckLine
from bench.errors import BenchError, first_line
from bench.plugins.entry_points import available
from bench.store.staleness import changes, fingerprint

WHAT = "accuracies of the networks, evaluated again on the test images"


def check(submission: Submission) -> CheckLine:
    """Evaluate the networks of all runs.

    Raises:
        NotChecked: A method, the model or the data set is not registered here, or is not the one that made a run.
    """
    from bench.export.rebuild import check_rebuilt, rebuild

    faults = []
    for run in submission.runs:
        method = str(run.record["method"])
        check_task(run.spec.task)
        if run.spec.method_files or method not in available("methods"):  # its code is not in the archive
            raise NotChecked(f"{method} is not a method of this installation, so its quantizer is not known")
        if reason := changes(run.record, fingerprint(method, None, run.spec.task.model)):
            raise NotChecked(f"{run.title} was made by other code than is here: {reason}")
        try:
            check_rebuilt(rebuild(submission.store, run.identity, submission.data_dir))
        except BenchError as error:
            faults.append(f"{run.title}: {first_line(error)}")
    return outcome(WHAT, faults, f"those of {len(submission.runs)} networks are as recorded")
