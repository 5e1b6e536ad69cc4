"""Non-local Neural Networks for Detectron2. Importing it registers its models and datasets."""

from typing import TYPE_CHECKING

try:
    import detectron2.config as _
except ModuleNotFoundError as error:
    if error.name not in ("detectron2", "detectron2.config"):
        raise
    raise ImportError(
        "nl_detectron needs Detectron2, which is not installed. Install it from source:\n"
        "    pip install --no-build-isolation "
        "git+https://github.com/facebookresearch/detectron2.git\n"
        "or, from PyPI alone (its Python sources without the compiled operators), in a clone of "
        "nl_detectron:\n"
        "    python dev/install_snapshot.py"
    ) from error

from . import data as _  # only registration
from .config import add_non_local_config
from .layers import BlockOptions, NonLocalBlock
from .modeling import NonLocalKeypointHead, insert_non_local
from .version import __version__

if TYPE_CHECKING:
    from .inference import Predictor

__all__ = [
    "BlockOptions",
    "NonLocalBlock",
    "NonLocalKeypointHead",
    "Predictor",
    "__version__",
    "add_non_local_config",
    "insert_non_local",
]


def __getattr__(name: str) -> object:
    # With it come the training engine and Matplotlib, which models and configs need not.
    if name == "Predictor":
        from .inference import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
