"""Detectron2's mapper of dataset records, with this package's reader of images."""

import io
from typing import Any

import cv2
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.utils.file_io import PathHandler, PathManager

from .images import ImageError, read_image


class ImageMapper(DatasetMapper):
    """:class:`DatasetMapper`, in training and in evaluation, with the pixels of prediction.

    Images are read by :func:`read_image`. The arguments are those of :class:`DatasetMapper`.
    """

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """See :meth:`DatasetMapper.__call__`.

        Raises:
            ImageError: if the image cannot be read or is not of the size that the record says.
        """
        name = dataset_dict["file_name"]
        # DatasetMapper opens its images through Detectron2's path manager, where the prefix leads
        # to the handler below. So nothing of that method stands here once more.
        record = {**dataset_dict, "file_name": f"{_Decoded.PREFIX}{name}"}
        try:
            mapped = super().__call__(record)
        except SizeMismatchError as error:
            message = " ".join(str(error).split()).replace(_Decoded.PREFIX, "")
            raise ImageError(f"{name}: {message}") from error
        mapped["file_name"] = name
        return mapped


class _Decoded(PathHandler):
    """Gives an image file as what :func:`read_image` makes of it, in a format without loss."""

    PREFIX = "nl_detectron-image://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **_: Any) -> io.BytesIO:
        file = PathManager.get_local_path(path.removeprefix(self.PREFIX))
        image = cv2.cvtColor(read_image(file), cv2.COLOR_BGR2RGB)
        # as a PPM file, which is the pixels behind one line
        return io.BytesIO(b"P6 %d %d 255\n" % image.shape[1::-1] + image.tobytes())


PathManager.register_handler(_Decoded())
