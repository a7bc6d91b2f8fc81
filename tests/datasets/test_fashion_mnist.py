import gzip
import hashlib
import struct
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets

from bench.data.task_data import TaskData
from bench.errors import BenchError
from datasets import fashion_mnist
from datasets.fashion_mnist import FashionMnist

COUNTS = {"train": 30, "t10k": 10}


def _pixels(part: str) -> np.ndarray:
    return np.random.default_rng(COUNTS[part]).integers(0, 256, (COUNTS[part], 28, 28), dtype=np.uint8)


def _contents() -> dict[str, bytes]:
    """The four files in the IDX format."""
    files = {}
    for part, count in COUNTS.items():
        files[f"{part}-images-idx3-ubyte"] = struct.pack(">4I", 2051, count, 28, 28) + _pixels(part).tobytes()
        files[f"{part}-labels-idx1-ubyte"] = struct.pack(">2I", 2049, count) + bytes(i % 10 for i in range(count))
    return files


def _compressed() -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in _contents().items()}


@pytest.fixture(autouse=True)
def few_images_and_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(url: str, filename: str, chunk_size: int = 0) -> None:
        raise URLError("Name or service not known")

    resources = [
        (name, hashlib.md5(content, usedforsecurity=False).hexdigest()) for name, content in _compressed().items()
    ]
    monkeypatch.setattr(fashion_mnist, "_COUNTS", COUNTS)
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", resources)
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, max_hops=3: url)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", offline)


def _put(root: Path, files: dict[str, bytes]) -> Path:
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def _refusal(root: Path) -> str:
    with pytest.raises(BenchError) as caught:
        FashionMnist().load(root)
    assert "--data-dir DIR" in str(caught.value)
    return str(caught.value)


def test_images_and_labels_are_those_of_the_files(tmp_path: Path) -> None:
    _put(tmp_path, _contents())
    arrays = FashionMnist().load(tmp_path)
    assert arrays.train_images.dtype == torch.uint8
    assert arrays.train_labels.dtype == torch.int64
    assert np.array_equal(arrays.train_images.squeeze(1).numpy(), _pixels("train"))
    assert np.array_equal(arrays.test_images.squeeze(1).numpy(), _pixels("t10k"))
    assert arrays.test_labels.tolist() == list(range(10))
    TaskData(FashionMnist(), arrays, validation_fraction=0.1, device=torch.device("cpu"))


def test_the_published_counts_are_expected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    _put(tmp_path, _contents())
    assert "train-images-idx3-ubyte is intact but holds 30 items, and the published file 60,000" in _refusal(tmp_path)


def test_absent_and_offline_says_what_why_and_how(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    message = _refusal(tmp_path)
    assert "looked for train-images-idx3-ubyte" in message
    assert str(tmp_path / "FashionMNIST" / "raw") in message
    assert "the download failed (<urlopen error Name or service not known>)" in message
    assert "http" not in message
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""


def test_compressed_files_are_unpacked_without_a_network(tmp_path: Path) -> None:
    _put(tmp_path, _compressed())
    assert len(FashionMnist().load(tmp_path).train_labels) == 30


def test_a_download_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def online(url: str, filename: str, chunk_size: int = 0) -> None:
        Path(filename).write_bytes(_compressed()[Path(filename).name])

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", online)
    assert len(FashionMnist().load(tmp_path).train_labels) == 30
    assert {path.name for path in (tmp_path / "FashionMNIST" / "raw").iterdir()} == set(_contents())


@pytest.mark.parametrize("part", ["images-idx3", "labels-idx1"])
def test_a_truncated_file_is_named_with_both_sizes(tmp_path: Path, part: str) -> None:
    name = f"train-{part}-ubyte"
    folder = _put(tmp_path, _contents())
    (folder / name).write_bytes(_contents()[name][:-7])
    message = _refusal(tmp_path)
    size = len(_contents()[name])
    assert f"{folder / name} of data set 'fashion_mnist' is corrupt: expected {size} bytes, found {size - 7}" in message


@pytest.mark.parametrize(("part", "item"), [("images-idx3", 28 * 28), ("labels-idx1", 1)])
def test_a_short_file_that_is_intact_is_not_called_corrupt(tmp_path: Path, part: str, item: int) -> None:
    name = f"train-{part}-ubyte"
    folder = _put(tmp_path, _contents())
    whole = _contents()[name]
    count = int.from_bytes(whole[4:8], "big")
    (folder / name).write_bytes(whole[:4] + (count - 3).to_bytes(4, "big") + whole[8 : len(whole) - 3 * item])
    message = _refusal(tmp_path)
    assert f"{folder / name} is intact but holds {count - 3} items, and the published file {count};" in message
    assert "corrupt" not in message


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    name = "t10k-labels-idx1-ubyte"
    folder = _put(tmp_path, _contents())
    (folder / name).write_bytes(b"\0" * len(_contents()[name]))
    assert "expected the header 000008010000000a, found 0000000000000000" in _refusal(tmp_path)


def test_a_processed_pickle_beside_the_files_is_not_read(tmp_path: Path) -> None:
    _put(tmp_path, _contents())
    processed = tmp_path / "FashionMNIST" / "processed"
    processed.mkdir()
    for name in ("training.pt", "test.pt"):
        (processed / name).write_bytes(b"not a tensor")
    assert len(FashionMnist().load(tmp_path).train_labels) == 30
