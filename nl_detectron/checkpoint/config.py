"""The config that a checkpoint was trained with."""

import os

from detectron2.utils.file_io import PathManager

from ..regular import problem
from .download import local_copy
from .reading import CheckpointError, read_checkpoint
from .safety.tables import open_safetensors

MAX_CONFIG = 1_000_000  # bytes; one of ours has 20,000


def read_config(path: str, *, trust: bool = False) -> str | None:
    """The config that belongs to a checkpoint, as YAML text, or None if there is none.

    It is looked for in the checkpoint itself, then beside it, in a file of the same name that ends
    in ``.yaml`` or in ``config.yaml``; a checkpoint of Detectron2's model zoo has the zoo's config.

    Args:
        path: as for ``MODEL.WEIGHTS``: a local file or an address.
        trust: see :func:`read_checkpoint`.

    Raises:
        CheckpointError: as :func:`read_checkpoint`, and if the file cannot be downloaded.
    """
    path = path.partition("?")[0]
    if (zoo_config := _zoo_config(path)) is not None:
        return zoo_config
    local = local_copy(PathManager, path, trust=trust)
    config = _config_inside(local, trust)
    if isinstance(config, str):
        return config
    folder = os.path.dirname(local)
    for file in (os.path.splitext(local)[0] + ".yaml", os.path.join(folder, "config.yaml")):
        if os.path.isfile(file):
            if wrong := problem(file, largest=MAX_CONFIG):
                raise CheckpointError(f"the config beside {local}, {file}, {wrong}")
            with open(file, encoding="utf-8") as opened:
                return opened.read()
    return None


def _zoo_config(path: str) -> str | None:
    from detectron2 import model_zoo  # here, for its deprecation warning on import

    zoo = model_zoo.model_zoo._ModelZooUrls
    for prefix in ("detectron2://", zoo.S3_PREFIX):
        if path.startswith(prefix):
            for name, suffix in zoo.CONFIG_PATH_TO_URL_SUFFIX.items():
                if path == f"{prefix}{name}/{suffix}":
                    return model_zoo.get_config(f"{name}.yaml").dump()
    return None


def _config_inside(path: str, trust: bool) -> object:
    if path.endswith(".pkl"):
        return None  # none is written with a config
    if not path.endswith(".safetensors"):
        return read_checkpoint(path, trust=trust).get("config")
    try:
        with open_safetensors(path) as file:
            return (file.metadata() or {}).get("config")
    except Exception as error:  # whatever a broken file leads to
        raise CheckpointError(f"checkpoint {path} is damaged or cut off ({error})") from error
