"""What a study is about, in the words that stand at the top of its page."""

from bench.reporting import wording
from bench.results.tables import StudyResults, section


def about_study(results: StudyResults) -> tuple[str, ...]:
    """Return task, budgets, progress and time of a study, each in a few words; what is not known is left out."""
    runs, spec = results.runs, results.spec
    task = section(spec, "task")
    models = [str(task.get("model") or ""), *map(str, spec.get("further_models") or ())]
    budgets = dict.fromkeys(filter(None, runs["budget"]))
    done = int((runs["status"] == "done").sum())
    started = min(filter(None, runs["started"]), default="")
    finished = max(filter(None, runs["finished"]), default="")
    return tuple(
        filter(
            None,
            (
                f"{', '.join(filter(None, models))} on {task.get('dataset')}" if task.get("dataset") else "",
                f"budget {', '.join(budgets)}" if budgets else "",
                f"complete: {wording.count(done, 'run')}"
                if done == len(runs)
                else f"{done} of {len(runs)} runs so far",
                wording.period(started, finished),
            ),
        )
    )
