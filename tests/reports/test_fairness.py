"""The report of what each method was given."""

from pathlib import Path

from reports.fairness import Fairness
from tests import fake_store
from tests.reports.reading import records, results_of, table_of

EQUAL = {"trained_updates": 250, "training_images": 16000, "evaluated_images": 500}


def test_every_method_has_a_row_and_a_breach_is_in_words(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    tuning = fake.tuning("dnas", [0.1, 0.2])
    sbs = {**EQUAL, "start_top1": 52.0, "repaired_gates": 1, "repair_share": 0.021}
    fake.run("sbs", 0, 70.0, metrics=sbs, data_use={"finetune": {"training_batches": 100}})
    fake.run("dnas", 0, 60.0, tuning=tuning, metrics={**EQUAL, "start_top1": 8.0, "repaired_gates": 0})
    fake.run("fixed", 0, 70.0, metrics={**EQUAL, "repaired_gates": 0})
    rows = {row["Method"]: row for row in records(table_of(Fairness(), fake, "fairness"))}
    assert rows["sbs"] == {
        "Method": "sbs",
        "Budget": "4bit",
        "Start (%)": "52.0",
        "Updates": "250",
        "Fine-tuning": "100",
        "Images": "16,000",
        "Evaluated": "500",
        "Trials": "0",
        "Per knob": "",
        "Landed (%)": "100",
        "Repaired": "1",
        "Repair's share (%)": "2",
        "Breaks equality": "",
    }
    assert rows["dnas"]["Breaks equality"] == "its searches start at 8.0 %, 44 points below the others"
    assert (rows["dnas"]["Trials"], rows["dnas"]["Per knob"]) == ("2", "2.0")
    assert rows["fixed"]["Start (%)"] == rows["fixed"]["Fine-tuning"] == ""


def test_a_study_without_results_has_no_statement(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.missing("not-yet")
    assert not Fairness().build(results_of(fake))
