"""The one reader of images: for training, evaluation, prediction, report and app."""

import contextlib
import re
import threading
import warnings
from pathlib import Path

import cv2
import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import UsageError
from ..regular import problem

# A 100-megapixel picture takes 0.3 GB, and its drawing a few times that.
MAX_PIXELS = 100_000_000
MAX_BYTES_PER_PIXEL = 16  # in a file, which holds four channels of 32 bits at most

# EPS is a program, which Pillow has Ghostscript run.
NOT_READ = {"EPS"}
# Where images that only OpenCV decodes, which makes room first, say their height and width: .hdr,
# .pfm and .pam
OPENCV_HEADERS = tuple(
    re.compile(header, re.DOTALL)
    for header in (
        rb"#\?.{0,4096}?\n[-+]Y +(?P<height>\d{1,9}) +[-+]X +(?P<width>\d{1,9})",
        rb"P[1-6Ff]\s+(#[^\n]*\n\s*)*(?P<width>\d{1,9})\s+(?P<height>\d{1,9})",
        rb"P7\n.{0,4096}?WIDTH +(?P<width>\d{1,9}).{0,4096}?HEIGHT +(?P<height>\d{1,9})",
    )
)

# Filters of warnings are the process's, and images are opened in several threads.
_filters = threading.Lock()


class ImageError(UsageError):
    """An image or video that cannot be used; the message names it and says why."""

    def __init__(self, message: str):
        if message.startswith("Caught "):  # how PyTorch hands on the error of a worker process
            message = message.strip().rpartition(f"{type(self).__name__}: ")[2]
        super().__init__(message)


def read_image(file: str | Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads whatever Pillow or OpenCV decode, the way a viewer would show it.

    Images of 8 bits, colour or grey, are as Detectron2 reads them. EXIF orientation is applied,
    transparent parts become white, grey becomes colour, palettes and CMYK become RGB. Grey of 16
    bits is scaled by 1/257, unless no value is above 255: then it holds 8 bits and stays as it is.
    Of colours of 16 bits the upper 8 count. Floats up to 1 are scaled by 255. Of an animation it
    is the first frame.

    Args:
        file: the image's path.
        max_pixels: larger images are refused, after a look at the header alone.

    Returns:
        The image, uint8 (H, W, 3) in BGR order.

    Raises:
        ImageError: if the file is missing, empty, no image, damaged or too large. What is altered
            within a JPEG's data, which have no checksum, is not always seen.
    """
    path = Path(file)
    if wrong := problem(path, largest=MAX_BYTES_PER_PIXEL * max_pixels):
        raise ImageError(f"{path} {wrong}")
    try:
        with _open(path) as image:
            _check_size(path, *image.size, max_pixels)
            pixels = _to_bgr(image)
        if image.format == "PNG":
            with _open(path) as checked:
                checked.verify()  # checksums, at which decoding does not look
        return pixels
    except Image.DecompressionBombError:
        raise ImageError(_too_large(path, "", max_pixels)) from None
    except UnidentifiedImageError:
        return _read_with_opencv(path, max_pixels)
    except ImageError:
        raise
    except Exception as error:  # of many kinds, as Pillow's decoders raise on damaged data
        raise ImageError(f"{path} cannot be read: {_one_line(error)}") from error


def to_format(image: np.ndarray, format: str) -> np.ndarray:
    """An image as models of an ``INPUT.FORMAT`` take it.

    Args:
        image: uint8 (H, W, 3) in BGR order.
        format: "BGR", "RGB", "L" (grey), or what else Detectron2's ``read_image`` knows.

    Returns:
        (H, W, C), with C = 1 for "L"; uint8 but for "YUV-BT.601".
    """
    if format == "BGR":
        return image
    return convert_PIL_to_numpy(Image.fromarray(image[:, :, ::-1]), format)


def _open(path: Path) -> Image.Image:
    """Reads the header."""
    with _filters, warnings.catch_warnings():
        # Pillow only warns of sizes that max_pixels decides about.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        Image.init()  # all formats, of which some are known only then
        return Image.open(path, formats=[name for name in Image.OPEN if name not in NOT_READ])


def _to_bgr(image: Image.Image) -> np.ndarray:
    """A Pillow image of any mode as uint8 (H, W, 3) BGR."""
    # Loaded first: what cannot be decoded is then an error of its own, not one of the EXIF data.
    image.load()
    with contextlib.suppress(Exception):  # broken EXIF data is no reason to refuse the pixels
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # 16 or 32-bit integers or floats; convert() would clip them
        values = np.nan_to_num(np.asarray(image).astype(np.float64))
        if image.mode[0] == "I" and values.max(initial=0) > 255:
            values = values / 257  # 65535 -> 255
        elif image.mode[0] == "F" and values.max(initial=0) <= 1:
            values = values * 255
        grey = np.clip(values, 0, 255).round().astype(np.uint8)
        return cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    rgb = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)


def _read_with_opencv(path: Path, max_pixels: int) -> np.ndarray:
    data = np.fromfile(path, np.uint8)
    if not data.size:
        raise ImageError(f"{path} is empty")
    for header in OPENCV_HEADERS:
        if size := header.match(data[:16384].tobytes()):
            _check_size(path, int(size["width"]), int(size["height"]), max_pixels)
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None:
        raise ImageError(f"{path} is no image that Pillow or OpenCV can read")
    _check_size(path, image.shape[1], image.shape[0], max_pixels)
    return image


def _check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(_too_large(path, f" of {width} x {height}", max_pixels))


def _too_large(path: Path, size: str, max_pixels: int) -> str:
    return f"{path} is too large: an image{size} has more than {max_pixels:,} pixels; shrink it"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
