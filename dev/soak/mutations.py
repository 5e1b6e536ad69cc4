"""Files of each kind that a stranger could send, each changed in a way of its own."""

import io
import json
import pickle
import random
import re
import struct
import zipfile
from collections.abc import Callable

import cv2
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as save_safetensors

from nl_detectron import model_zoo

# What is put in: what has broken readers before, and numbers at the ends of their types
PIECES: dict[str, tuple[bytes, ...]] = {
    "pickle": (
        *(b"(", b"]", b"}", b")", b"\x85", b"\x93", b"R", b"b", b"\x81", b"2", b"0", b"t", b"u"),
        *(
            b"cos\nsystem\n",
            b"cbuiltins\neval\n",
            b"X\x04\x00\x00\x00echo",
            b"ccollections\nOrderedDict\n",
        ),
        *(b"\x8e" + struct.pack("<Q", 6 << 30), b"\x8a\x09" + b"\xff" * 8 + b"\x1f", b"M\xff\xff"),
        *(b"U\x05items", b"U\x09_metadata", b"\x8bG\x00\x00\x00\x7f", b"h\x00", b"q\x00"),
    ),
    "json": (b"-1", b"99999999999999", b"[", b"]", b"{", b"}", b'"', b"null", b"1e999", b"\\u001b"),
    "yaml": (
        *(b"&a ", b"*a", b"<<: *a\n", b"[", b"{", b"!!python/object/apply:os.system ['true']"),
        *(b"_BASE_: http://127.0.0.1:9/x\n", b"_BASE_: /dev/zero\n", b"!!python/name:os.system ''"),
        *(b"1000000000", b"-1", b".nan", b".inf", b"null", b"\t", b"\x1b[2J", b"? ", b"- ", b"|\n"),
    ),
    "image": (
        *(
            b"\xff\xff\xff\xff",
            b"\x7f\xff\xff\xff",
            b"\xff\x7f",
            b"\x00\x00",
            b"\xff\xd8\xff",
            b"\x00" * 9,
        ),
        *(b"%!PS-Adobe-3.0 EPSF-3.0\n", b"65535", b"-1", b"IEND", b"II*\x00", b"\x89PNG\r\n\x1a\n"),
    ),
}
SUFFIXES = {"png", "jpg", "gif", "bmp", "tif", "webp", "qoi", "ppm", "ico", "tga", "sgi", "pcx"}
SUFFIXES |= {"jp2", "dds", "icns", "im", "avif"}


def _weights() -> dict[str, torch.Tensor]:
    """Of one storage: before torch 1.6 several would be in the order of their addresses."""
    values = torch.randn(8, generator=torch.Generator().manual_seed(0))
    return {"weight": values[:6].reshape(2, 3, 1, 1), "bias": values[6:]}


def _config() -> str:
    return model_zoo.get_config("quick_schedules/keypoint_rcnn_people_nl.yaml").dump()


class Mutations:
    """The files of each kind, by number: the same number is the same file."""

    def __init__(self) -> None:
        weights, self.config = _weights(), _config()
        vocabulary = json.dumps({"thing_classes": ["apple", "pear"]})
        about = {"config": self.config, "vocabulary": vocabulary, "iteration": 7}
        arrays = {name: value.numpy() for name, value in weights.items()}
        zoo = {"model": arrays, "__author__": "a zoo", "matching_heuristics": True}
        self.pickles = [pickle.dumps(zoo, protocol) for protocol in range(6)]
        self.archives = [self._torch(weights, about, zipped) for zipped in (True, False)]
        self.safetensors = self._safetensors(weights, {k: str(v) for k, v in about.items()})
        self.images = list(self._images())
        self.kinds: dict[str, Callable[[random.Random], tuple[str, bytes]]] = {
            ".pkl": self._changed_pickle,
            ".pth": self._changed_archive,
            ".safetensors": self._changed_safetensors,
            "YAML config": self._changed_config,
            "image": self._changed_image,
        }

    def __call__(self, kind: str, number: int) -> tuple[str, bytes]:
        """The end of a file's name, and its bytes."""
        return self.kinds[kind](random.Random(f"{kind} {number}"))

    @staticmethod
    def _torch(weights: dict, about: dict, zipped: bool) -> bytes:
        file = io.BytesIO()
        torch.save({"model": weights, **about}, file, _use_new_zipfile_serialization=zipped)
        # Before torch 1.6, storages are called by their addresses.
        names: dict[bytes, bytes] = {}
        return re.sub(
            rb"X.\0\0\0(\d{8,})",
            lambda match: names.setdefault(match[0], b"X\x01\0\0\0%d" % len(names)),
            file.getvalue(),
            flags=re.DOTALL,
        )

    @staticmethod
    def _safetensors(weights: dict, about: dict[str, str]) -> bytes:
        data = save_safetensors({name: value.clone() for name, value in weights.items()}, about)
        end = 8 + int.from_bytes(data[:8], "little")
        table = json.dumps(json.loads(data[8:end]), sort_keys=True).encode()  # not in any order
        return struct.pack("<Q", len(table)) + table + data[end:]

    @staticmethod
    def _images() -> list[tuple[str, bytes]]:
        pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.init()
        written = []
        for suffix in sorted(SUFFIXES):
            format = Image.registered_extensions().get(f".{suffix}")
            if format in Image.SAVE:
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, format)
                written.append((suffix, file.getvalue()))
        for suffix in ("hdr", "pfm", "pam"):  # OpenCV's
            values = pixels if suffix == "pam" else pixels.astype(np.float32) / 255
            written.append((suffix, cv2.imencode(f".{suffix}", values)[1].tobytes()))
        return written

    def _changed_pickle(self, rng: random.Random) -> tuple[str, bytes]:
        return ".pkl", change(rng.choice(self.pickles), "pickle", rng)

    def _changed_archive(self, rng: random.Random) -> tuple[str, bytes]:
        zipped, legacy = self.archives
        choice = rng.randrange(4)
        if choice == 0:
            return ".pth", change(zipped, "pickle", rng)
        if choice == 1:
            return ".pth", change(legacy, "pickle", rng, within=len(legacy) // 2)
        # The archive is whole: its CRC-32 are those of what was changed.
        changed = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(zipped)) as old, zipfile.ZipFile(changed, "w") as new:
            for name in old.namelist():
                record = old.read(name)
                if name.endswith("data.pkl") or (choice == 3 and rng.random() < 0.3):
                    record = change(record, "pickle", rng)
                new.writestr(zipfile.ZipInfo(name), record)  # without the time of day
        return ".pth", changed.getvalue()

    def _changed_safetensors(self, rng: random.Random) -> tuple[str, bytes]:
        data = self.safetensors
        if rng.random() < 0.3:
            return ".safetensors", change(data, "json", rng)
        end = 8 + int.from_bytes(data[:8], "little")
        table = data[8:end]
        place = table.rindex(b'"bias"') if rng.random() < 0.5 and b'"bias"' in table else 0
        table = table[:place] + change(table[place:], "json", rng)
        return ".safetensors", struct.pack("<Q", len(table)) + table + data[end:]

    def _changed_config(self, rng: random.Random) -> tuple[str, bytes]:
        return ".yaml", change(self.config.encode(), "yaml", rng)

    def _changed_image(self, rng: random.Random) -> tuple[str, bytes]:
        suffix, data = rng.choice(self.images)
        return f".{suffix}", change(data, "image", rng, within=rng.choice((32, 128, len(data))))


def change(data: bytes, kind: str, rng: random.Random, *, within: int | None = None) -> bytes:
    """The same with one to four changes: bits, bytes, parts doubled, moved or cut, pieces put in.

    Args:
        kind: whose ``PIECES``.
        within: so many bytes at the beginning.
    """
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        size = max(1, min(within or len(changed), len(changed)))
        place = rng.randrange(size)
        length = rng.choice((1, 2, 4, 8, 64))
        match rng.randrange(7):
            case 0:
                changed[place : place + 1] = bytes([rng.randrange(256)])
            case 1 if changed:
                place = min(place, len(changed) - 1)
                changed[place] ^= 1 << rng.randrange(8)
            case 2:
                del changed[place : place + length]
            case 3:
                part = changed[place : place + length]
                changed[place:place] = part * rng.choice((1, 2, 1000))
            case 4:
                other = rng.randrange(size)
                changed[place : place + length] = changed[other : other + length]
            case 5 if rng.random() < 0.2:
                del changed[place:]
            case _:
                piece = rng.choice(PIECES[kind])
                end = place + (len(piece) if rng.random() < 0.5 else 0)
                changed[place:end] = piece
    return bytes(changed)
