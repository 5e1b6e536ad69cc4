"""Videos as streams of frames, in and out, and stable ids for what is in them."""

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from detectron2.structures import Instances

from ..data.images import ImageError
from ..errors import UsageError

# Frames in a row that cannot be read, after which a video is taken to end
MAX_GAP = 100
CODECS = ("avc1", "mp4v")  # H.264, where OpenCV has an encoder for it, plays in more places


class VideoReader:
    """The frames of a video, one at a time.

    Attributes:
        fps: frames a second; 25 where the file does not say.
        num_frames: as the file says, None where it does not.
        num_read: the frames that have been read so far.
        num_lost: those that could not be, before others that could or, at the end, out of
            ``num_frames``, which is an estimate in some formats: 1 % or 2 frames are not counted.
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
        self.num_read = self.num_lost = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        """uint8 (H, W, 3) BGR each, without damaged ones.

        Raises:
            ImageError: if there is not a single frame.
        """
        for _, frame in self.numbered():
            yield frame

    def numbered(self) -> Iterator[tuple[int, np.ndarray]]:
        """The same, with each frame's number in the video, from 1, damaged ones counted.

        Raises:
            ImageError: if there is not a single frame.
        """
        gap = 0
        try:
            while gap <= MAX_GAP:
                is_read, frame = self._capture.read()
                if not is_read:  # at a damaged frame as at the end
                    gap += 1
                    continue
                self.num_lost += gap
                self.num_read += 1
                gap = 0
                yield self.num_read + self.num_lost, frame
        finally:
            self._capture.release()
        if not self.num_read:
            raise ImageError(f"{self._file} has no frame that OpenCV can read")
        rest = (self.num_frames or 0) - self.num_read - self.num_lost
        if rest > max(2, (self.num_frames or 0) // 100):
            self.num_lost += rest


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
                self._file, self._num_frames = file, 0
                return
        raise ImageError(f"OpenCV cannot write a video of {size[1]} x {size[0]} pixels to {file}")

    def write(self, frame: np.ndarray) -> None:
        """Appends a frame, uint8 (H, W, 3) BGR."""
        with _quiet():  # of a full disk, of which close() speaks
            self._writer.write(frame)
        self._num_frames += 1

    def close(self) -> None:
        """Completes the file.

        Raises:
            ImageError: if not all frames are in it, as where the disk is full: OpenCV does not say.
        """
        self.stop()
        with _quiet():
            written = cv2.VideoCapture(str(self._file))
            whole = written.isOpened()
            count = written.get(cv2.CAP_PROP_FRAME_COUNT)
            written.release()
        if not whole or count < self._num_frames:
            raise ImageError(f"{self._file} cannot be written whole; is there room on the disk?")

    def stop(self) -> None:
        """Lets go of the file, whole or not."""
        with _quiet():
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
