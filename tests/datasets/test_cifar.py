import gzip
import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets

import bench
from bench.data.task_data import TaskData
from bench.errors import BenchError
from datasets.cifar import Cifar10, Cifar100

Kind = type[Cifar10] | type[Cifar100]
KINDS = {Cifar10: torchvision.datasets.CIFAR10, Cifar100: torchvision.datasets.CIFAR100}
FOLDERS = {Cifar10: "cifar-10-batches-py", Cifar100: "cifar-100-python"}


class _Malicious:
    """A pickle that leaves a trace when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def _batch(kind: Kind, number: int, count: int) -> bytes:
    """One file in CIFAR's layout: rows of 3,072 pixels, all red first, then green, then blue."""
    pixels = np.random.default_rng(number).integers(0, 256, (count, 3072), dtype=np.uint8)
    labels = [(number + index) % kind.num_classes for index in range(count)]
    return pickle.dumps({"data": pixels, "labels" if kind is Cifar10 else "fine_labels": labels})


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture(params=[Cifar10, Cifar100], ids=["cifar10", "cifar100"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kind:
    """The data set, with torchvision's class made to expect the few images of `_contents`, and no network."""
    kind: Kind = request.param
    published = KINDS[kind]
    contents, archive = _contents(kind), _archive(kind)

    def expected(names: list[str]) -> list[list[str]]:
        return [[name, _md5(contents[name])] for name in names]

    monkeypatch.setattr(published, "train_list", expected([name for name, _ in published.train_list]))
    monkeypatch.setattr(published, "test_list", expected([name for name, _ in published.test_list]))
    name = published.meta["filename"]
    monkeypatch.setattr(published, "meta", {**published.meta, "md5": _md5(contents[name])})
    monkeypatch.setattr(published, "tgz_md5", _md5(archive))

    def offline(url: str, filename: str, chunk_size: int = 0) -> None:
        Path(filename).write_bytes(archive[: len(archive) // 2])
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, max_hops=3: url)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", offline)
    return kind


def _contents(kind: Kind) -> dict[str, bytes]:
    published = KINDS[kind]
    files = {name: _batch(kind, number, 4) for number, (name, _) in enumerate(published.train_list)}
    files |= {name: _batch(kind, 9, 3) for name, _ in published.test_list}
    return files | {published.meta["filename"]: pickle.dumps({published.meta["key"]: ["name"] * kind.num_classes})}


def _archive(kind: Kind) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in _contents(kind).items():
            member = tarfile.TarInfo(f"{FOLDERS[kind]}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    # A fixed time in the header, so that the checksum stays the same.
    return gzip.compress(buffer.getvalue(), mtime=0)


def _put(kind: Kind, root: Path) -> Path:
    folder = root / FOLDERS[kind]
    folder.mkdir(parents=True)
    for name, content in _contents(kind).items():
        (folder / name).write_bytes(content)
    return folder


def _refusal(kind: Kind, root: Path) -> str:
    with pytest.raises(BenchError) as caught:
        kind().load(root)
    return str(caught.value)


def test_images_and_labels_are_those_of_the_files(kind: Kind, tmp_path: Path) -> None:
    _put(kind, tmp_path)
    arrays = kind().load(tmp_path)
    batches = [pickle.loads(_batch(kind, number, 4)) for number in range(5 if kind is Cifar10 else 1)]  # noqa: S301
    pixels = np.concatenate([batch["data"] for batch in batches])
    assert arrays.train_images.dtype == torch.uint8
    assert arrays.train_labels.dtype == torch.int64
    assert np.array_equal(arrays.train_images.numpy(), pixels.reshape(-1, 3, 32, 32))
    assert arrays.test_images.shape == (3, 3, 32, 32)
    assert arrays.test_labels.tolist() == [(9 + index) % kind.num_classes for index in range(3)]


def test_files_are_read_without_a_write(kind: Kind, tmp_path: Path) -> None:
    folder = _put(kind, tmp_path)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path, folder)}
    folder.chmod(0o555)
    tmp_path.chmod(0o555)
    try:
        kind().load(tmp_path)
    finally:
        tmp_path.chmod(0o755)
        folder.chmod(0o755)
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_the_default_folder_is_searched(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _put(kind, tmp_path / "sbs-bench")
    assert len(kind().load(None).test_labels) == 3


def test_absent_and_offline_says_what_why_and_how(
    kind: Kind, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    message = _refusal(kind, tmp_path)
    folder = FOLDERS[kind]
    assert f"was not found: looked for {next(iter(_contents(kind)))}" in message
    assert f"in {tmp_path / folder};" in message
    assert "the download failed (<urlopen error Name or service not known>)" in message
    assert f"put the unpacked folder '{folder}' into {tmp_path}" in message
    assert "--data-dir DIR" in message
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""


def test_a_truncated_file_is_named_with_both_checksums(kind: Kind, tmp_path: Path) -> None:
    folder = _put(kind, tmp_path)
    name = KINDS[kind].test_list[0][0]
    whole = _contents(kind)[name]
    (folder / name).write_bytes(whole[:1000])
    message = _refusal(kind, tmp_path)
    assert str(folder / name) in message
    assert f"expected md5 {_md5(whole)}, found {_md5(whole[:1000])}" in message


@pytest.mark.parametrize("part", ["train", "test", "meta"])
def test_a_changed_file_is_never_unpickled(kind: Kind, tmp_path: Path, part: str) -> None:
    folder = _put(kind, tmp_path)
    published = KINDS[kind]
    name = published.meta["filename"] if part == "meta" else getattr(published, f"{part}_list")[-1][0]
    trace = tmp_path / "trace"
    (folder / name).write_bytes(pickle.dumps(_Malicious(trace)))
    assert "is corrupt" in _refusal(kind, tmp_path)
    assert not trace.exists()


def test_torchvision_itself_verifies_before_it_unpickles(kind: Kind, tmp_path: Path) -> None:
    folder = _put(kind, tmp_path)
    published, trace = KINDS[kind], tmp_path / "trace"
    (folder / published.train_list[0][0]).write_bytes(pickle.dumps(_Malicious(trace)))
    with pytest.raises(RuntimeError, match="corrupted"):
        published(tmp_path)
    assert not trace.exists()


def test_a_missing_file_of_an_otherwise_good_folder_is_named(kind: Kind, tmp_path: Path) -> None:
    folder = _put(kind, tmp_path)
    name = KINDS[kind].test_list[0][0]
    (folder / name).unlink()
    assert f"is incomplete: looked for {name} in {folder}" in _refusal(kind, tmp_path)


def test_an_archive_is_unpacked_without_a_network(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / KINDS[kind].filename).write_bytes(_archive(kind))
    assert len(kind().load(tmp_path).test_labels) == 3


def test_a_download_is_unpacked_and_kept_without_its_archive(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def online(url: str, filename: str, chunk_size: int = 0) -> None:
        Path(filename).write_bytes(_archive(kind))

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", online)
    assert len(kind().load(tmp_path).test_labels) == 3
    assert [path.name for path in tmp_path.iterdir()] == [FOLDERS[kind]]


def test_a_download_with_the_wrong_checksum_is_refused(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(url: str, filename: str, chunk_size: int = 0) -> None:
        Path(filename).write_bytes(b"a login page")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", wrong)
    assert "the download failed" in _refusal(kind, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_importing_the_modules_is_cheap() -> None:
    code = (
        "import bench, sys, datasets.cifar, datasets.fashion_mnist, datasets.digits, datasets.synthetic\n"
        "assert not {'torchvision', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# --- the real files ---


@pytest.fixture
def real_data() -> Path:
    default = Path(bench.__file__).resolve().parent.parent.parent / "shared" / "data"
    folder = Path(os.environ.get("BENCH_DATA_DIR", default))
    if not (folder / FOLDERS[Cifar100]).is_dir():
        pytest.skip(f"no CIFAR-100 files in {folder}; set BENCH_DATA_DIR")
    return folder


@pytest.mark.data
def test_real_cifar100(real_data: Path) -> None:
    dataset = Cifar100()
    arrays = dataset.load(real_data)
    assert arrays.train_images.shape == (50_000, 3, 32, 32)
    assert arrays.test_images.shape == (10_000, 3, 32, 32)
    assert arrays.train_labels.bincount().tolist() == [500] * 100
    assert arrays.test_labels.bincount().tolist() == [100] * 100
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(3):
        share = arrays.train_images[:, channel].flatten().bincount(minlength=256) / (50_000 * 1024)
        mean = (share * values).sum()
        std = (share * (values - mean) ** 2).sum().sqrt()
        assert dataset.mean[channel] == pytest.approx(mean.item(), abs=1e-4)
        assert dataset.std[channel] == pytest.approx(std.item(), abs=1e-4)
    data = TaskData(dataset, arrays, validation_fraction=0.1, device=torch.device("cpu"))
    assert (len(data.train), len(data.validation), len(data.test)) == (45_000, 5_000, 10_000)
    assert data.validation.labels.bincount().tolist() == [50] * 100
