"""Published weights as a checkpoint: taken from torchvision's folder, never downloaded."""

from pathlib import Path

import pytest
import torch

from bench.errors import BenchError
from bench.models.build import build_model
from bench.models.weights import checkpoint_of
from bench.planning.checkpoints import load_checkpoint
from bench.spec.schema import TaskSpec


def task(model: str, checkpoint: str | None = "torchvision") -> TaskSpec:
    return TaskSpec(model=model, dataset="imagenet", checkpoint=checkpoint)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torchvision's folder of weights, empty."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_a_file_of_the_user_s_is_itself() -> None:
    assert checkpoint_of(task("resnet18", "mine.pt")) == Path("mine.pt")
    assert checkpoint_of(task("resnet18", None)) is None


def test_published_weights_are_found_and_fit(hub: Path) -> None:
    torch.manual_seed(0)
    published = build_model("mobilenet_v2", (3, 224, 224), 1000)
    file = hub / "mobilenet_v2-b0353104.pth"
    torch.save(published.state_dict(), file)
    assert checkpoint_of(task("mobilenet_v2")) == file
    model = build_model("mobilenet_v2", (3, 224, 224), 1000)
    load_checkpoint(model, file, "mobilenet_v2")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), published.parameters(), strict=True))


def test_absent_weights_are_named_with_their_place(hub: Path) -> None:
    with pytest.raises(BenchError, match=r"weights of resnet18 are missing: .*resnet18-f37072fd\.pth does not exist"):
        checkpoint_of(task("resnet18"))
    assert not list(hub.iterdir())


def test_a_model_without_published_weights_says_so() -> None:
    with pytest.raises(BenchError, match="no weights IMAGENET1K_V1 of model 'resnet20'"):
        checkpoint_of(task("resnet20"))
