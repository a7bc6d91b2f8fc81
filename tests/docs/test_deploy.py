"""The walk of `docs/deploy.md`: its commands, in its order, from a study to classes without the harness."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.store.files import read_checked

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "deploy.md").read_text()
FASTER = ["--in-process", "--set", "pretrain.epochs=2", "--model", "resnet8"]
"""Added to the study of the page, so that the test is fast."""


@pytest.mark.slow
def test_the_page_leads_from_a_study_to_classes(bench: Any, tmp_path: Path) -> None:
    study, chosen, exported = (shlex.split(line) for line in re.findall(r"(?m)^ {4}bench (.*)$", PAGE)[:3])
    assert (study[0], chosen[0], exported[0]) == ("run", "choose", "export")
    assert bench(*study, *FASTER).status == 0
    assert "export it: bench export " in bench(*chosen).out
    answer = bench(*exported)
    assert answer.status == 0, answer.err
    assert "359/359" in answer.out

    device = tmp_path / "device"
    shutil.copytree(next(Path("exported").iterdir()), device)
    named = set(re.findall(r"(?m)^\| `([\w.]+)` \|", PAGE.partition("## Forms")[0]))
    assert {path.name for path in device.iterdir()} == named
    document = read_checked(device / "export.json") or {}
    np.save(device / "images.npy", np.random.default_rng(0).integers(0, 256, (7, 1, 8, 8), dtype=np.uint8))
    (command,) = re.findall(r"(?m)^ {4}python (executor\.py .*)$", PAGE)
    ran = subprocess.run(
        [sys.executable, "-I", *shlex.split(command)], cwd=device, capture_output=True, text=True, check=True
    )
    assert len(ran.stdout.split()) == 7
    assert np.load(device / "logits.npy").shape == (7, 10)
    assert document["forms"]["packed"]["files"]["network.safetensors"] > 0


def test_the_page_names_every_form() -> None:
    from bench.export.forms import FORMS

    assert set(re.findall(r"(?m)^\| `([\w-]+)` \|", PAGE.partition("## Forms")[2])) == set(FORMS)
