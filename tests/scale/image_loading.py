"""Measure how many images per second the training pipeline of image files delivers, relative to decoding alone.

    python -m tests.scale.image_loading --workers 2 --images 1024 --rounds 5

The script makes JPEG files of the size of ImageNet's: 500×375, quality 90, about 100 KB, smooth random colours with
noise. In each round four readers read all files once, in turn, with the same number of processes: the decoder alone;
decoding and resizing; the whole pipeline up to batches of bytes; and the pipeline up to normalised batches on the
device. It prints the median rate of each, its ratio to the decoder's rate of the same round, and the ratio of the
pipeline's rate to that of decoding and resizing, which are both indispensable.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.data.image_decoding import Answer, Loader, Reader, Request
from bench.data.image_files import Framing, decode
from bench.data.image_loading import ImageDataset, ImageFiles
from bench.data.task_data import TaskData
from bench.spec.seeds import generator
from bench.store.machine import resolve_device
from datasets.imagefolder import ImageFolder

_CHUNK = 32
_AHEAD = 8


class DecodingReader(Reader):
    """A data set that decodes images and keeps nothing."""

    def __getitem__(self, request: Request) -> Answer:
        """Return one number for the pixels of each image."""
        for position in request.positions.tolist():
            self.work(decode(self.table.read(int(self.rows[position]))))
        return torch.zeros(1), []

    def work(self, pixels: torch.Tensor) -> None:
        """Process a decoded image."""


class ResizingReader(DecodingReader):
    """A data set that decodes and resizes images and keeps nothing."""

    def work(self, pixels: torch.Tensor) -> None:
        """Resize as training does."""
        self.framing._resized(pixels)


def make_images(folder: Path, count: int) -> float:
    """Write files for two classes in both parts; return their mean size in KB."""
    draws = np.random.default_rng(0)
    sizes = []
    for number in range(count + 2):
        part = "val" if number >= count else "train"
        path = folder / part / f"class{number % 2}" / f"{number:06}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = (375, 500) if number % 4 else (500, 375)
        smooth = Image.fromarray(draws.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height), 3)
        noisy = np.asarray(smooth) + draws.normal(0, 18, (height, width, 1)) + draws.normal(0, 5, (height, width, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        sizes.append(path.stat().st_size)
    return statistics.fmean(sizes) / 1000


def candidates(
    dataset: ImageDataset, contents: ImageFiles, workers: int, batch_size: int, device: torch.device
) -> dict[str, Callable[[], Iterator[object]]]:
    """Return all readers; each reads all images once."""
    count = len(contents.train)
    framing: Framing = dataset.framing
    rows = np.arange(count)
    data = TaskData(dataset, contents, validation_fraction=0.0, device=device, workers=workers)
    order = generator("order")
    found: dict[str, Callable[[], Iterator[object]]] = {}
    for name, kind in (("decode", DecodingReader), ("decode and resize", ResizingReader)):
        loader = Loader(kind(contents.train, rows, framing), workers, pin=False)

        def read(loader: Loader = loader) -> Iterator[object]:
            requests = (Request(positions=rows[start : start + _CHUNK]) for start in range(0, count, _CHUNK))
            return loader.again(requests, _AHEAD)

        found[name] = read
    batches = count // batch_size
    found["pipeline"] = lambda: data.train.augmented(batch_size, batches, order, skip=0)
    found["normalised"] = lambda: data.training_batches(batch_size, order)
    return found


def seconds(read: Callable[[], Iterator[object]], device: torch.device) -> float:
    """Return the seconds that a reader needs for all images."""
    began = time.perf_counter()
    for _ in read():
        pass
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="0,2", help="numbers of processes that decode, separated by commas")
    parser.add_argument("--images", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    device = torch.device(resolve_device(asked.device))
    torch.set_num_threads(1)
    count = asked.images // asked.batch_size * asked.batch_size
    with tempfile.TemporaryDirectory(prefix="image-loading-") as name:
        folder = Path(name)
        kilobytes = make_images(folder, count)
        dataset = ImageFolder.described(image_size=asked.image_size, data_dir=folder)
        for workers in map(int, asked.workers.split(",")):
            things = candidates(dataset, dataset.load(folder), workers, asked.batch_size, device)
            rates: dict[str, list[float]] = {thing: [] for thing in things}
            for thing in things.values():  # starts processes, fills caches
                seconds(thing, device)
            for _ in range(asked.rounds):
                for thing, read in things.items():
                    rates[thing].append(count / seconds(read, device))
            ratio = {
                f"{top} / {bottom}": statistics.median(a / b for a, b in zip(rates[top], rates[bottom], strict=True))
                for top, bottom in (
                    ("decode and resize", "decode"),
                    ("pipeline", "decode"),
                    ("pipeline", "decode and resize"),
                    ("normalised", "decode"),
                )
            }
            line = {"workers": workers, "images": count, "kb": round(kilobytes, 1), "side": dataset.crop}
            line |= {f"{thing}, images/s": round(statistics.median(rate)) for thing, rate in rates.items()}
            print(json.dumps(line | {pair: round(value, 3) for pair, value in ratio.items()}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
