import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from nl_detectron.errors import UsageError
from nl_detectron.inference import ImageError, find_inputs, read_image

RED = (0, 0, 255)  # BGR


@pytest.fixture
def corner() -> Image.Image:
    """Grey, 40 x 20 pixels, with a red upper left quarter."""
    image = Image.new("RGB", (40, 20), (128, 128, 128))
    image.paste((255, 0, 0), (0, 0, 20, 10))
    return image


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "gif", "ppm"])
def test_formats(tmp_path, corner, suffix):
    corner.save(tmp_path / f"image.{suffix}")
    image = read_image(tmp_path / f"image.{suffix}")
    assert image.shape == (20, 40, 3) and image.dtype == np.uint8
    assert np.abs(image[5, 8].astype(int) - RED).max() < 12
    assert np.abs(image[15, 35].astype(int) - 128).max() < 12


@pytest.mark.parametrize(
    ("orientation", "place"),  # of the red quarter, as (y, x) in the upright image
    [(1, (0, 0)), (2, (0, 1)), (3, (1, 1)), (4, (1, 0)), (5, (0, 0)), (6, (0, 1)), (7, (1, 1))]
    + [(8, (1, 0))],
)
def test_exif_orientation(tmp_path, corner, orientation, place):
    exif = Image.Exif()
    exif[274] = orientation
    corner.save(tmp_path / "image.jpg", exif=exif, quality=95)
    image = read_image(tmp_path / "image.jpg")
    assert image.shape[:2] == ((40, 20) if orientation > 4 else (20, 40))
    height, width = image.shape[:2]
    y, x = (np.array(place) * 0.5 + 0.25) * (height, width)
    assert image[int(y), int(x), 2] > 200 and image[int(y), int(x), 0] < 60


def test_broken_exif_does_not_matter(tmp_path, corner):
    corner.save(tmp_path / "image.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff nonsense")
    assert read_image(tmp_path / "image.jpg").shape == (20, 40, 3)


def test_transparent_parts_are_white(tmp_path):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:, :2] = (255, 0, 0, 255)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    image = read_image(tmp_path / "rgba.png")
    assert image[0, 0].tolist() == list(RED) and image[0, 3].tolist() == [255, 255, 255]
    grey = Image.fromarray(np.full((4, 4), 7, np.uint8))
    grey.save(tmp_path / "keyed.png", transparency=7)
    assert (read_image(tmp_path / "keyed.png") == 255).all()


def test_grey_and_16_bit(tmp_path):
    ramp = np.linspace(0, 255, 16).astype(np.uint8).reshape(4, 4)
    cv2.imwrite(str(tmp_path / "grey.png"), ramp)
    cv2.imwrite(str(tmp_path / "deep.png"), ramp.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "deep.tif"), ramp.astype(np.uint16) * 257)
    colour = np.dstack([ramp, ramp[::-1], ramp.T]).astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "colour.png"), colour)
    cv2.imwrite(str(tmp_path / "colour.tif"), colour)
    Image.fromarray(ramp.astype(np.float32) / 255).save(tmp_path / "float.tif")
    expected = np.dstack([ramp] * 3)
    for name in ("grey.png", "deep.png", "deep.tif", "float.tif"):
        assert np.array_equal(read_image(tmp_path / name), expected), name
    for name in ("colour.png", "colour.tif"):
        assert np.array_equal(read_image(tmp_path / name), colour // 257), name


def test_what_only_opencv_decodes(tmp_path):
    cv2.imwrite(str(tmp_path / "image.hdr"), np.full((5, 7, 3), 0.5, np.float32))
    assert read_image(tmp_path / "image.hdr").shape == (5, 7, 3)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


def test_bad_files_are_named(tmp_path, corner):
    def refused(name: str, data: bytes | None, message: str) -> None:
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=f"{name}.*{message}"):
            read_image(tmp_path / name)

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), np.uint8))
    for suffix in ("jpg", "png", "webp", "tif"):
        noise.save(tmp_path / f"whole.{suffix}")
        data = (tmp_path / f"whole.{suffix}").read_bytes()
        refused(f"half.{suffix}", data[: len(data) // 2], "cannot be read|no image")
    refused("missing.jpg", None, "does not exist")
    refused("empty.jpg", b"", "is empty")
    refused("text.jpg", b"not an image at all", "no image that Pillow or OpenCV can read")
    refused("huge.png", png_header(20_000, 20_000), "more than 100,000,000 pixels")
    refused("large.png", png_header(12_000, 10_000), "12000 x 10000 has more than 100,000,000")
    (tmp_path / "folder.jpg").mkdir()
    refused("folder.jpg", None, "is no file")


def test_files_folders_and_globs(tmp_path):
    for name in ("a/1.jpg", "a/b/1.jpg", "a/2.webp", "a/.hidden.jpg", "a/notes.txt", "a/3.AVI"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a/out").mkdir()
    (tmp_path / "a/out/1.jpg").touch()
    found = find_inputs([tmp_path / "a"], exclude=tmp_path / "a/out")
    names = [item.output.as_posix() for item in found]
    assert names == ["1.jpg", "2.webp.jpg", "3.AVI.mp4", "b/1.jpg"]
    assert [item.is_video for item in found] == [False, False, True, False]
    # Each file once, and two of one name apart
    again = find_inputs([str(tmp_path / "a/*.jpg"), tmp_path / "a/1.jpg", tmp_path / "a/b/1.jpg"])
    assert [item.output.as_posix() for item in again] == ["1.jpg", "1-2.jpg"]
    # What is named is taken, whatever it is called.
    assert find_inputs([tmp_path / "a/notes.txt"])[0].output.name == "notes.txt.jpg"


def test_inputs_that_name_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    for value, message in (
        ("nowhere.jpg", "nowhere.jpg does not exist"),
        ("empty", "holds no images"),
        ("*.jpg", "no file matches"),
    ):
        with pytest.raises(UsageError, match=message):
            find_inputs([tmp_path / value])
