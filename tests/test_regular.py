"""What is no file with contents is refused before anything is read of it."""

import os
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from nl_detectron.checkpoint import CheckpointError, read_checkpoint
from nl_detectron.data.images import ImageError, read_image
from nl_detectron.regular import problem


def sparse(path: Path, size: int = 8 << 30) -> Path:
    """A file of any size, of which only the beginning is there."""
    with open(path, "wb") as file:
        file.write(b"\x80\x04\x8e" + (6 << 30).to_bytes(8, "little"))  # BINBYTES8 of 6 GiB
        file.truncate(size)
    return path


@pytest.fixture
def no_files(tmp_path: Path) -> dict[str, Path]:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    return {
        "is no file but a pipe": tmp_path / "pipe",
        "is no file but a folder": tmp_path / "folder",
        "is no file but a device": Path("/dev/zero"),
        "does not exist": tmp_path / "nowhere",
        "is nearly empty": sparse(tmp_path / "sparse"),
    }


def test_each_is_named(no_files):
    for words, path in no_files.items():
        assert words in str(problem(path))
    assert "embedded null byte" in str(problem("a\0b"))


def test_a_link_to_one_is_one(tmp_path, no_files):
    (tmp_path / "link").symlink_to("/dev/zero")
    assert problem(tmp_path / "link") == "is no file but a device"


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
@pytest.mark.parametrize("trust", [False, True])
def test_no_checkpoint_is_read_of_one(tmp_path, no_files, suffix, trust):
    for number, (words, path) in enumerate(no_files.items()):
        link = tmp_path / f"{number}{suffix}"
        link.symlink_to(path)
        start = time.monotonic()
        with pytest.raises(CheckpointError, match=words):
            read_checkpoint(str(link), trust=trust)
        assert time.monotonic() - start < 5


def test_no_image_is_read_of_one(no_files):
    no_files["is too large"] = no_files.pop("is nearly empty")
    for words, path in no_files.items():
        start = time.monotonic()
        with pytest.raises(ImageError, match=words):
            read_image(path)
        assert time.monotonic() - start < 5


def test_a_sparse_image_is_not_read(tmp_path):
    with pytest.raises(ImageError, match="is nearly empty"):
        read_image(sparse(tmp_path / "image.png", 1 << 30))


def test_files_with_data_are_fine(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"x" * (1 << 20))
    assert problem(path) is None and problem(path, largest=1 << 20) is None
    assert problem(path, largest=1000) == "is too large: 1,048,576 bytes are more than 1,000"
    half = sparse(tmp_path / "half", 100 << 20)
    with open(half, "r+b") as file:
        file.write(b"x" * (50 << 20))
    assert problem(half) is None


@pytest.mark.parametrize("suffix", [".hdr", ".pfm", ".pam"])
def test_what_only_opencv_decodes_is_measured_before(tmp_path, suffix):
    image = np.full((5, 7, 3), 200, np.uint8)
    if suffix != ".pam":
        image = image.astype(np.float32) / 255
    path = tmp_path / f"image{suffix}"
    assert cv2.imwrite(str(path), image)
    assert read_image(path).shape == (5, 7, 3)
    data = path.read_bytes()
    for small, large in ((b"Y 5 +X 7", b"Y 32000 +X 32000"), (b"PF\n7 5", b"PF\n32000 32000")):
        data = data.replace(small, large)
    data = data.replace(b"WIDTH 7", b"WIDTH 32000").replace(b"HEIGHT 5", b"HEIGHT 32000")
    path.write_bytes(data)
    with pytest.raises(ImageError, match="32000 x 32000 has more than 100,000,000 pixels"):
        read_image(path)


def test_eps_is_not_handed_to_ghostscript(tmp_path, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "image.eps")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", None)  # which would fail otherwise
    with pytest.raises(ImageError, match="no image that Pillow or OpenCV can read"):
        read_image(tmp_path / "image.eps")
