"""Videos as streams of frames, in and out, and stable ids for what is in them."""

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from detectron2.structures import Instances

from ..data.images import ImageError
from ..errors import UsageError

CODECS = ("avc1", "mp4v")  # H.264, where OpenCV has an encoder for it, plays in more places


class VideoReader:
    """The frames of a video, one at a time.

    Attributes:
        fps: frames a second; 25 where the file does not say.
        num_frames: as the file says, None where it does not.
    """

    def __init__(self, file: Path):
        """
        Raises:
            ImageError: if the file is missing or no video.
        """
        if not file.is_file():
            raise ImageError(f"{file} does not exist")
        with _quiet():
            self._capture = cv2.VideoCapture(str(file))
        if not self._capture.isOpened():
            raise ImageError(f"{file} is no video that OpenCV can read")
        self._file = file
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps < 1000 else 25.0
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.num_frames = int(count) if 0 < count < 2**31 else None

    def __iter__(self) -> Iterator[np.ndarray]:
        """uint8 (H, W, 3) BGR each.

        Raises:
            ImageError: if there is not a single frame.
        """
        empty = True
        try:
            while (frame := self._capture.read())[0]:
                empty = False
                yield frame[1]
        finally:
            self._capture.release()
        if empty:
            raise ImageError(f"{self._file} has no frame that OpenCV can read")


class VideoWriter:
    """An MP4 file, H.264 where OpenCV can encode it and MPEG-4 elsewhere.

    An odd height or width loses its last row or column, as these codecs want it.
    """

    def __init__(self, file: Path, fps: float, size: tuple[int, int]):
        """
        Args:
            file: ends in ``.mp4``.
            size: (H, W) of the frames.

        Raises:
            ImageError: if it cannot be written.
        """
        for codec in CODECS:
            with _quiet():
                fourcc = cv2.VideoWriter.fourcc(*codec)
                self._writer = cv2.VideoWriter(str(file), fourcc, fps, size[::-1])
            if self._writer.isOpened():
                return
        raise ImageError(f"OpenCV cannot write a video of {size[1]} x {size[0]} pixels to {file}")

    def write(self, frame: np.ndarray) -> None:
        """Appends a frame, uint8 (H, W, 3) BGR."""
        self._writer.write(frame)

    def close(self) -> None:
        """Completes the file."""
        self._writer.release()


class Tracker:
    """Detectron2's IoU tracker: the same number for the same instance in each frame."""

    def __init__(self, size: tuple[int, int]):
        """
        Args:
            size: (H, W) of the frames.

        Raises:
            UsageError: if scipy, which Detectron2's trackers import, is not installed.
        """
        self._tracker = load_tracker()(
            video_height=size[0],
            video_width=size[1],
            max_lost_frame_count=10,
            min_box_rel_dim=0.0,
            min_instance_period=0,
            track_iou_threshold=0.5,
        )

    def __call__(self, instances: Instances) -> list[int]:
        """The ids of N instances of the next frame, counted from 0."""
        # Masks and keypoints would be copied along and are not looked at.
        fields = ("pred_boxes", "scores", "pred_classes")
        seen = Instances(instances.image_size, **{name: instances.get(name) for name in fields})
        # What it has lost, and still looks for, it appends.
        return self._tracker.update(seen).ID[: len(instances)]


def load_tracker() -> type:
    """Detectron2's ``BBoxIOUTracker``; see :class:`Tracker` for what is raised."""
    try:
        from detectron2.tracking import BBoxIOUTracker
    except ImportError as error:
        raise UsageError(
            f"track needs scipy, which Detectron2's trackers import ({error}); install it with: "
            "pip install scipy",
            arguments=["track"],
        ) from None
    return BBoxIOUTracker


class _quiet:
    """Keeps OpenCV and FFmpeg from printing what their return values say as well."""

    def __enter__(self) -> None:
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        self._level = cv2.utils.logging.setLogLevel(0)

    def __exit__(self, *_: object) -> None:
        cv2.utils.logging.setLogLevel(self._level)
