"""Checkpoints of a study are checked before it begins, each once, and what is mapped is said once."""

import argparse
import json
import logging
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.errors import BenchError
from bench.planning.checkpoints import check_checkpoints, load_checkpoint
from bench.planning.networks import task_model


def state_of(tiny: SimpleNamespace) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(task_model(tiny.spec().task).state_dict())


def as_safetensors(path: Path, state: dict[str, Tensor]) -> None:
    names = {torch.float32: "F32", torch.int64: "I64"}
    header, data = {}, b""
    for name, value in state.items():
        content = value.numpy().tobytes()
        places = {"shape": list(value.shape), "data_offsets": [len(data), len(data) + len(content)]}
        header[name] = {"dtype": names[value.dtype], **places}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_a_safetensors_file_is_read_by_its_suffix(tiny: SimpleNamespace, tmp_path: Path) -> None:
    state = state_of(tiny)
    as_safetensors(tmp_path / "a.SafeTensors", state)
    torch.manual_seed(9)
    model = task_model(tiny.spec().task)
    assert load_checkpoint(model, tmp_path / "a.SafeTensors", "mine") == ""
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_options_and_numbers_of_numpy_beside_the_network_are_read_without_code(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    beside = {"args": argparse.Namespace(lr=0.1), "best": np.float64(3.5), "epoch": np.int64(3)}
    torch.save({"model": state_of(tiny), **beside}, tmp_path / "a.pt")
    note = load_checkpoint(task_model(tiny.spec().task), tmp_path / "a.pt", "mine")
    assert note.endswith("no part of the network: 'args', 'best', 'epoch'")


def test_every_checkpoint_is_checked_and_what_is_mapped_is_said_once(
    tiny: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"state_dict": state_of(tiny)}, tmp_path / "a.pt")
    torch.save(state_of(tiny), tmp_path / "b.pt")
    ablate = {"task.checkpoint": [str(tmp_path / "b.pt")], "finetune.lr": [0.01, 0.02]}
    spec = tiny.spec({"task": {"checkpoint": str(tmp_path / "a.pt")}, "ablate": ablate})
    with caplog.at_level(logging.WARNING):
        check_checkpoints(spec)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == f"checkpoint '{tmp_path / 'a.pt'}' for resnet8: read its entry 'state_dict'"
    (tmp_path / "b.pt").write_bytes(b"")
    with pytest.raises(BenchError, match=r"b\.pt' cannot be read"):
        check_checkpoints(spec)


@pytest.mark.parametrize("dry", [True, False])
def test_nan_is_refused_by_name_before_anything_begins(
    bench: Callable[..., Any], tiny: SimpleNamespace, tmp_path: Path, *, dry: bool
) -> None:
    state = state_of(tiny)
    state["fc.weight"][0, 0] = torch.nan
    torch.save(state, tmp_path / "nan.pt")
    options = ("--model", "resnet8", "--dataset", "synthetic", "--methods", "fixed", "--device", "cpu")
    checkpoint = ("--set", f"task.checkpoint={tmp_path / 'nan.pt'}")
    words = bench("run", *options, *checkpoint, *(["--dry-run"] if dry else [])).refusal
    assert "nan.pt' has NaN or infinite numbers in 'fc.weight'; start from another file" in words
    assert not Path("bench-store").exists()
