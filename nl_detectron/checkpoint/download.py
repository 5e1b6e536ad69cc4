"""Gets files, and checks downloaded ones against what a name or a list states about them."""

import hashlib
import os
import re
from typing import Any, NamedTuple

from ..log import logger
from .reading import CheckpointError

# sha256 of files of Detectron2's model zoo, as stated by others who distribute or pin them, since
# its authors state none: that of f10217 was found in three independent places, the others in one
SHA256 = {
    "COCO-Detection/faster_rcnn_R_50_FPN_3x/137849458/model_final_280758.pkl": (
        "3c25caca37baabbff3e22cc9eb0923db165a0c18b867871a3bf3570bac9b7ef0"
    ),
    "COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x/139173657/model_final_68b088.pkl": (
        "fe5ad56ff746aa55c5f453b01f8395134e9281d240dbeb473411d4a6b262c9dc"
    ),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl": (
        "9a737e290372f1f70994ebcbd89d8004dbb3ae30a605fd915a190fa4a782dd66"
    ),
    "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x/139653917/model_final_2d9806.pkl": (
        "12f6e1811baf1b4d329c3f5ac5ec52d8f634d3cedc82a13fff55d0c05d84f442"
    ),
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x/137849621/model_final_a6e10b.pkl": (
        "48cc65c6f9ff63dabe64bf6082eb257d8515b42b31f0e44ff43cf9470f5107e4"
    ),
    "COCO-PanopticSegmentation/panoptic_fpn_R_101_3x/139514519/model_final_cafdb1.pkl": (
        "808c675e647298688589c895c9581f7f3963995c5708bc53f66449200321d147"
    ),
}
ZOO_ADDRESSES = ("detectron2://", "https://dl.fbaipublicfiles.com/detectron2/")
# "To check downloaded file integrity, any model on this page contains its md5 prefix in its file
# name" (Detectron2's CONFIGS.md)
ZOO_NAME = re.compile(r"model_final_([0-9a-f]{6})\.pkl")
# torch.hub's convention, which torchvision, timm and OpenMMLab follow: resnet50-19c8e357.pth. Eight
# digits without a letter are more often a date.
HUB_NAME = re.compile(r"-(?=[0-9]*[a-f])([0-9a-f]{8,64})\.\w+")


class Digest(NamedTuple):
    """The first hexadecimal digits of a file's digest."""

    algorithm: str
    digits: str


def local_copy(path_manager: Any, address: str, *, trust: bool = False) -> str:
    """The path of a local file, or of the local copy of one at an address, downloaded if need be.

    Args:
        trust: take a downloaded file as it is.

    Raises:
        CheckpointError: if it is not there, or not what it is stated to be.
    """
    try:
        path = path_manager.get_local_path(address)
    except Exception as error:  # of any of the handlers of addresses
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(f"{address} cannot be had ({reason})") from error
    if not os.path.isfile(path):
        raise CheckpointError(f"checkpoint {address} does not exist")
    if not trust:
        check_download(address, path)
    return path


def stated_digest(address: str) -> Digest | None:
    """The digest that is known for the file at an address, or None.

    Args:
        address: http(s):// or detectron2://; for local files nothing is known.
    """
    address = address.partition("?")[0]
    name = address.rpartition("/")[2]
    for prefix in ZOO_ADDRESSES:
        if address.startswith(prefix):
            if digits := SHA256.get(address.removeprefix(prefix)):
                return Digest("sha256", digits)
            if match := ZOO_NAME.fullmatch(name):
                return Digest("md5", match[1])
    if address.startswith(("https://", "http://")) and (match := HUB_NAME.search(name)):
        return Digest("sha256", match[1])
    return None


def check_download(address: str, path: str) -> None:
    """Checks the local copy of the file at an address, and logs what it was checked against.

    Another md5 than the zoo's name states is a warning: its six digits find broken downloads, keep
    no one from making a file on purpose, and nobody but its authors has stated them.

    Raises:
        CheckpointError: if its sha256 is not the one that is stated.
    """
    stated = stated_digest(address)
    if stated is None:
        return
    digest = hashlib.new(stated.algorithm)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    found = digest.hexdigest()
    if found.startswith(stated.digits):
        logger.info(f"{address} has the {stated.algorithm} that is stated for it")
        return
    problem = (
        f"{address} is not what was downloaded: its {stated.algorithm} is stated to begin with "
        f"{stated.digits}, but {path} has {found}. Delete that file and load it again"
    )
    if stated.algorithm != "md5":
        raise CheckpointError(problem)
    logger.warning(problem)
