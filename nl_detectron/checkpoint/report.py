"""What a load did to each tensor of a model, and whether a run may go on with it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from detectron2.layers import CNNBlockBase
from detectron2.modeling import Backbone
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.keypoint_head import KRCNNConvDeconvUpsampleHead
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from tabulate import tabulate
from torch import Tensor, nn

from ..errors import one_line
from ..finite import not_finite
from ..layers import BaseNonLocalBlock
from ..layers.names import within_block

NAMES_SHOWN = 2
# The last layer of models trained on ImageNet: fc1000 (Detectron2), stem.fc (torchvision), linear
CLASSIFIER = re.compile(r"((stem|head)\.)?(fc|fc1000|linear|classifier|pred)")
# The layers whose shape is made by the number of classes or of keypoints
CLASS_LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    FastRCNNOutputLayers: ("cls_score", "bbox_pred"),
    MaskRCNNConvUpsampleHead: ("predictor",),
    KRCNNConvDeconvUpsampleHead: ("score_lowres",),
    RetinaNetHead: ("cls_score",),
}

# A tensor's name, its shape in the file and in the model
Mismatch = tuple[str, tuple[int, ...], tuple[int, ...]]


@dataclass
class LoadReport:
    """The names of tensors, each in exactly one list.

    A model's tensor is ``loaded``, or ``new_non_local``: of a block of which the file has nothing,
    which keeps its zero start; or ``new_part``: outside of the ResNet, when the file holds a
    pretrained ResNet and nothing else; or ``missing``; or of another shape in the file: because
    the file's model has other classes or keypoints (``new_classes``), or for another reason
    (``mismatched``). ``unexpected`` are tensors of the file that the model has no place for.
    """

    loaded: list[str] = field(default_factory=list)
    new_non_local: list[str] = field(default_factory=list)
    new_part: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    new_classes: list[Mismatch] = field(default_factory=list)
    mismatched: list[Mismatch] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [
            ("loaded", self.loaded),
            ("new non-local (zero start)", self.new_non_local),
            ("new part (random start)", self.new_part),
            ("new classes (random start)", _shapes(self.new_classes)),
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("shape mismatch", _shapes(self.mismatched)),
        ]
        return tabulate(
            [(title, len(names), _first(names)) for title, names in rows],
            headers=("tensors", "count", "names"),
            tablefmt="simple",
            disable_numparse=True,
            colalign=("left", "right", "left"),
        )

    def problem(self, *, complete: bool) -> str | None:
        """Why a run must not go on with these weights, or None if it may.

        Args:
            complete: whether every tensor must come from the file, as for an evaluation, in which
                a block at its zero start would be taken for a trained one.
        """
        if not self.loaded:
            return "no tensor in it fits the model"
        wrong = []
        if self.missing:
            wrong.append(f"{len(self.missing)} tensors are missing ({_first(self.missing)})")
        if self.mismatched:
            names = [name for name, _, _ in self.mismatched]
            wrong.append(f"{len(names)} tensors have another shape ({_first(names)})")
        if complete and self.new_classes:
            names = [name for name, _, _ in self.new_classes]
            wrong.append(
                f"{len(names)} tensors are of other classes or keypoints ({_first(names)})"
            )
        if complete and self.new_non_local:
            names = self.new_non_local
            wrong.append(f"{len(names)} non-local tensors are missing ({_first(names)})")
        if complete and self.new_part:
            wrong.append(f"{len(self.new_part)} tensors are missing ({_first(self.new_part)})")
        if wrong and self.unexpected:
            names = self.unexpected
            wrong.append(f"{len(names)} tensors of the file have no place ({_first(names)})")
        blocks = [name for name in self.unexpected if within_block(name) is not None]
        if complete and blocks:
            wrong.append(
                f"{len(blocks)} tensors of non-local blocks have no place in the model "
                f"({_first(blocks)})"
            )
        return "; ".join(wrong) or None


def broken_numbers(weights: Mapping[str, Tensor], what: str = "the weights") -> str | None:
    """What is wrong with tensors that hold NaN or infinity, or None where none does."""
    wrong = not_finite(weights)
    if not wrong:
        return None
    return (
        f"{len(wrong)} of {len(weights)} tensors of {what} hold NaN or infinity "
        f"({_first(wrong)}): what wrote them had broken down; take an earlier checkpoint"
    )


def classify(
    model: nn.Module,
    present: Iterable[str],
    missing: Iterable[str],
    unexpected: Iterable[str],
    mismatched: Sequence[Mismatch],
) -> LoadReport:
    """Sorts the tensors of a model after a load.

    What a layer makes up for itself counts with the layer: the statistics of a FrozenBN that the
    file has folded into its weights, and the counter of batches, which no norm here reads.

    Args:
        present: names in the file.
        missing: names of the model's tensors that the model itself says it misses.
        unexpected: names in the file that the model does not have.
        mismatched: name, shape in the file and shape in the model.
    """
    other = {name for name, _, _ in mismatched}
    present, missing = set(present) - other, set(missing) - other
    layers = {name.rpartition(".")[0] for name in present}
    names = [name for name in model.state_dict() if name not in other]
    loaded = [
        name
        for name in names
        if name in present
        or (name.rpartition(".")[0] in layers and (name not in missing or _is_counter(name)))
    ]
    missing = set(names) - set(loaded)
    unexpected = [name for name in unexpected if not _is_counter(name)]
    by_classes = _made_by_classes(model)
    report = LoadReport(loaded, unexpected=unexpected)
    for mismatch in mismatched:
        of_classes = _differs_in(mismatch, by_classes.get(mismatch[0]))
        (report.new_classes if of_classes else report.mismatched).append(mismatch)

    blocks = _prefixes(model, BaseNonLocalBlock)
    untouched = tuple(
        prefix for prefix in blocks if not any(n.startswith(prefix) for n in (*loaded, *other))
    )
    # The pretrained part of a detector: its residual blocks, wherever they are (res5 of C4 models
    # is in the RoI heads), or the whole of a backbone that has no other one inside.
    pretrained = tuple(_prefixes(model, CNNBlockBase)) + _innermost_backbones(model)
    backbone_only = bool(loaded) and all(name.startswith(pretrained) for name in (*loaded, *other))
    backbone_only &= all(_beside_backbone(name, loaded) for name in unexpected)
    for name in names:
        if name not in missing:
            continue
        if name.startswith(untouched):
            report.new_non_local.append(name)
        elif backbone_only and not name.startswith(pretrained):
            report.new_part.append(name)
        else:
            report.missing.append(name)
    return report


def _made_by_classes(model: nn.Module) -> dict[str, int]:
    """The axis that is as long as there are classes or keypoints, by the tensor's name."""
    axes = {}
    for name, module in model.named_modules():
        for kind, layers in CLASS_LAYERS.items():
            for layer in layers if isinstance(module, kind) else ():
                for parameter, _ in getattr(module, layer).named_parameters():
                    transposed = isinstance(getattr(module, layer), nn.ConvTranspose2d)
                    axes[f"{name}.{layer}.{parameter}".lstrip(".")] = int(
                        transposed and parameter == "weight"
                    )
    return axes


def _differs_in(mismatch: Mismatch, axis: int | None) -> bool:
    """Whether two shapes differ along this axis alone."""
    _, file, ours = mismatch
    differing = [i for i, sizes in enumerate(zip(file, ours, strict=False)) if len({*sizes}) > 1]
    return len(file) == len(ours) and differing == [axis]


def _shapes(mismatches: Sequence[Mismatch]) -> list[str]:
    return [f"{name} {list(file)} in the model {list(ours)}" for name, file, ours in mismatches]


def _prefixes(model: nn.Module, kind: type) -> list[str]:
    return [f"{name}." for name, m in model.named_modules() if name and isinstance(m, kind)]


def _innermost_backbones(model: nn.Module) -> tuple[str, ...]:
    prefixes = _prefixes(model, Backbone)
    return tuple(
        prefix
        for prefix in prefixes
        if not any(other != prefix and other.startswith(prefix) for other in prefixes)
    )


def _beside_backbone(name: str, loaded: Iterable[str]) -> bool:
    """Whether a pretrained ResNet has it besides: its classifier, or more of a loaded layer."""
    layer = name.rpartition(".")[0]
    return CLASSIFIER.fullmatch(layer) is not None or any(
        f".{other}".rpartition(".")[0].endswith(f".{layer}") for other in loaded
    )


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _first(names: Sequence[str]) -> str:
    more = f", ... {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return one_line(", ".join(names[:NAMES_SHOWN])) + more
