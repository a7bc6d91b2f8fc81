import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import transforms

from bench.data.image_files import Framing, ImageTable, UnreadableError, classes_in, decode
from bench.errors import BenchError
from bench.spec.schema import ImageOptions
from tests.datasets.images import cut_short, make_folder, picture


def _content(image: Image.Image, kind: str, **how: object) -> bytearray:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return bytearray(buffer.getvalue())


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


# --- decoding ---


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_lossless_files_come_out_as_they_are(kind: str, mode: str) -> None:
    image = picture(1).convert(mode)
    found = decode(_content(image, kind))
    assert found.dtype == torch.uint8
    assert torch.equal(found, _pixels(image))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_files_come_out_close_to_what_went_in(mode: str, how: dict[str, Any]) -> None:
    content = _content(picture(2).convert(mode), "JPEG", quality=90, **how)
    assert (decode(content).int() - _pixels(picture(2).convert(mode)).int()).abs().float().mean() < 8


def test_palettes_and_transparency() -> None:
    palette = picture(3).quantize(16)
    assert torch.equal(decode(_content(palette, "PNG")), _pixels(palette))
    clear = picture(4).convert("RGBA")
    clear.putalpha(0)
    assert torch.equal(decode(_content(clear, "PNG")), _pixels(picture(4)))
    grey = picture(5).convert("LA")
    assert torch.equal(decode(_content(grey, "PNG")), _pixels(picture(5).convert("L")))


def test_the_upper_byte_of_sixteen_bits_is_taken() -> None:
    values = np.arange(0, 65536, 128, dtype=np.uint16).reshape(16, 32)
    found = decode(_content(Image.fromarray(values), "PNG"))
    assert torch.equal(found, torch.from_numpy((values >> 8).astype(np.uint8)).expand(3, -1, -1))


GREY = np.arange(0, 65536, 128, dtype=np.uint16).reshape(16, 32)


def _pgm(grey: NDArray[np.uint16]) -> bytearray:
    """Older releases of Pillow read 16 bits from this format, and do not write them."""
    height, width = grey.shape
    return bytearray(f"P5 {width} {height} 65535\n".encode() + grey.astype(">u2").tobytes())


@pytest.mark.parametrize(
    "content",
    [_content(Image.fromarray(GREY.astype(order)), "TIFF") for order in ("<u2", ">u2")] + [_pgm(GREY)],
    ids=["TIFF, low byte first", "TIFF, high byte first", "PGM"],
)
def test_it_is_taken_in_every_format_and_order_of_bytes(content: bytearray) -> None:
    assert torch.equal(decode(content)[0], torch.from_numpy(GREY // 256).to(torch.uint8))


def _tiff(values: bytes, width: int, height: int, **tags: int) -> bytearray:
    """Write a TIFF file of one strip, little-endian, with the given tags."""
    numbers = {"bits": 258, "photometric": 262, "kind": 339}
    own = {numbers[name]: value for name, value in tags.items()}
    fields = {256: width, 257: height, 259: 1, 273: 8, 277: 1, 278: height, 279: len(values), **own}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(fields.items()))
    start = 8 + len(values)
    head = struct.pack("<2sHI", b"II", 42, start)
    return bytearray(head + values + struct.pack("<H", len(fields)) + entries + bytes(4))


def test_tiff_files_in_which_large_values_are_dark_and_of_twelve_bits() -> None:
    content = _tiff(GREY.tobytes(), 32, 16, bits=16, photometric=0)
    assert torch.equal(decode(content)[0], torch.from_numpy(255 - GREY // 256).to(torch.uint8))
    pairs = [(0, 4095), (1024, 16), (2048, 255), (4080, 300)]
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)
    found = decode(_tiff(packed, 2, 4, bits=12, photometric=1))
    assert found[0].tolist() == [[a // 16, b // 16] for a, b in pairs]


@pytest.mark.parametrize(
    ("kind", "values", "told"),
    [
        ("TIFF", np.linspace(0, 1, 64, dtype=np.float32), "floating-point"),
        ("TIFF", np.arange(64, dtype=np.int32) * 1000, "signed or 32-bit"),
    ],
)
def test_pixels_without_a_fixed_range_are_unreadable(kind: str, values: NDArray[Any], told: str) -> None:
    content = _content(Image.fromarray(values.reshape(8, 8)), kind)
    with pytest.raises(UnreadableError, match=f"{told} numbers without a fixed range; convert it to 8 bits"):
        decode(content)


def test_signed_pixels_of_sixteen_bits_are_unreadable() -> None:
    values = np.arange(-32, 32, dtype=np.int16).tobytes()
    with pytest.raises(UnreadableError, match="signed or 32-bit"):
        decode(_tiff(values, 8, 8, bits=16, photometric=1, kind=2))


def test_orientation_is_ignored() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    plain, noted = (decode(_content(picture(6), "JPEG", **how)) for how in ({}, {"exif": turned}))
    assert torch.equal(plain, noted)


def test_a_png_by_the_name_of_jpeg_is_read_as_what_it_is(tmp_path: Path) -> None:
    root = make_folder(tmp_path, train=1, test=1, classes="ab")
    (root / "train" / "a" / "000.jpg").write_bytes(_content(picture(7), "PNG"))
    table = ImageTable(root / "train", ["a", "b"])
    assert torch.equal(decode(table.read(0)), _pixels(picture(7)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_files_that_were_cut_short_are_unreadable(kind: str, share: float) -> None:
    content = _content(picture(8, 200, 150), kind)
    with pytest.raises(UnreadableError) as caught:
        decode(content[: int(share * len(content))])
    assert str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xd8\xff", b"no image", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\0" * 500])
def test_other_files_are_unreadable(content: bytes) -> None:
    with pytest.raises(UnreadableError) as caught:
        decode(bytearray(content))
    assert str(caught.value) and " object at 0x" not in str(caught.value)


def test_random_damage_never_ends_the_process() -> None:
    draws = np.random.default_rng(0)
    for kind in ("JPEG", "PNG"):
        sound = _content(picture(9, 64, 48), kind)
        for _ in range(60):
            spoilt = bytearray(sound)
            for place in draws.integers(2, len(sound), 5):
                spoilt[place] = draws.integers(256)
            try:
                assert decode(spoilt).dtype == torch.uint8
            except UnreadableError as error:
                assert "\n" not in str(error)


def test_a_line_is_no_image() -> None:
    with pytest.raises(UnreadableError, match="1000×3 pixels are too long"):
        decode(_content(picture(10, 1000, 3), "PNG"))


# --- framing ---


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (300, 300), (256, 256), (256, 400), (90, 120), (1000, 257)])
def test_the_middle_is_that_of_the_usual_pipeline(size: tuple[int, int]) -> None:
    image = picture(11, *size)
    usual = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    difference = (Framing(resize=256, crop=224).centre(_pixels(image)).int() - usual(image).int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 0.05


def test_random_windows_are_cut_out_of_the_same_resized_image() -> None:
    pixels, framing = _pixels(picture(12, 50, 40)), Framing(resize=20, crop=16)
    whole = transforms.functional.resize(pixels, [20], antialias=True)
    for top in range(5):
        for left in range(10):
            row, column = (top + 0.5) / 5, (left + 0.5) / 10
            window = whole[:, top : top + 16, left : left + 16]
            assert _close(framing.random(pixels, row, column, 0.7), window)
            assert _close(framing.random(pixels, row, column, 0.3), window.flip(2))
    last = framing.random(pixels, float(np.float32(1 - 2**-24)), 0.0, 0.5)
    assert _close(last, whole[:, 4:20, :16])


def test_training_images_are_changed_as_the_options_say() -> None:
    """The colours by torchvision's own functions, in their order."""
    pixels = _pixels(picture(12, 20, 20))

    def framing(**options: Any) -> Framing:
        return Framing(resize=20, crop=16, options=ImageOptions(**options))

    unmirrored = framing(mirror=False)
    assert torch.equal(unmirrored.random(pixels, 0.0, 0.0, 0.1), framing().random(pixels, 0.0, 0.0, 0.9))
    assert torch.equal(framing(crop="middle").random(pixels, 0.9, 0.1, 0.7), framing().centre(pixels))
    grey = framing(channels=1).centre(pixels)
    assert _close(grey, transforms.functional.rgb_to_grayscale(framing().centre(pixels)))
    changed = framing(colour=0.5, mirror=False).random(pixels, 0.0, 0.0, 0.9, 0.2, 0.5, 1.0)
    expected = unmirrored.random(pixels, 0.0, 0.0, 0.9)
    for name, factor in (("brightness", 0.7), ("contrast", 1.0), ("saturation", 1.5)):
        expected = getattr(transforms.functional, f"adjust_{name}")(expected, factor)
    assert _close(changed, expected) and not _close(changed, unmirrored.random(pixels, 0.0, 0.0, 0.9))
    assert (framing().draws, framing(colour=0.1).draws) == (3, 6)


def _close(one: Tensor, other: Tensor) -> bool:
    """The results agree up to rounding."""
    return one.shape == other.shape and int((one.int() - other.int()).abs().max()) <= 1


# --- tables ---


def test_the_digest_covers_names_sizes_and_labels(tmp_path: Path) -> None:
    root = make_folder(tmp_path, train=3, test=1, classes="ab") / "train"
    before = ImageTable(root, ["a", "b"]).digest()
    assert ImageTable(root, ["a", "b"]).digest() == before
    found = {before}
    (root / "a" / "000.jpg").rename(root / "a" / "00.jpg")
    found.add(ImageTable(root, ["a", "b"]).digest())
    (root / "a" / "00.jpg").rename(root / "a" / "000.jpg")
    assert ImageTable(root, ["a", "b"]).digest() == before
    cut_short(root / "a" / "001.jpg")
    found.add(ImageTable(root, ["a", "b"]).digest())
    (root / "b" / "002.jpg").rename(root / "a" / "b.jpg")
    found.add(ImageTable(root, ["a", "b"]).digest())
    assert len(found) == 4


def test_names_need_not_be_text(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with open(bytes(tmp_path) + b"/a/\xff \xc3.png", "wb") as file:  # noqa: PTH123
        file.write(_content(picture(13), "PNG"))
    table = ImageTable(tmp_path, ["a"])
    assert torch.equal(decode(table.read(0)), _pixels(picture(13)))
    assert table.name(0).startswith("a/")


def test_folders_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=f"cannot read the images in {tmp_path}/nowhere: No such file"):
        classes_in(tmp_path / "nowhere")
    with pytest.raises(BenchError, match=f"cannot read the images in {tmp_path}"):
        ImageTable(tmp_path, ["nowhere"])


def test_links_that_lead_nowhere_are_listed_and_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "a" / "y.jpg").touch()
    table = ImageTable(tmp_path, ["a"])
    with pytest.raises(UnreadableError, match="No such file"):
        table.read(0)
    with pytest.raises(UnreadableError, match="the file is empty"):
        table.read(1)
