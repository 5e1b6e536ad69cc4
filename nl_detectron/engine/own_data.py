"""What follows from a user's own datasets for a config."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.detection_utils import create_keypoint_hflip_indices
from omegaconf import DictConfig, OmegaConf

from ..checkpoint import read_vocabulary
from ..data.keypoints import COCO_SIGMAS, oks_sigmas
from ..data.own import classes_of, register_coco
from ..errors import UsageError, few

CLASS_KEYS = ("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.RETINANET.NUM_CLASSES")
KEYPOINTS_KEY = "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"
SIGMAS_KEY = "TEST.KEYPOINT_OKS_SIGMAS"
LAZY_NAMES = ("dataloader.train.dataset.names", "dataloader.test.dataset.names")
LAZY_CLASS_KEYS = ("model.roi_heads.num_classes", "model.num_classes", "model.head.num_classes")
LAZY_KEYPOINT_HEAD = "model.roi_heads.keypoint_head"


@dataclass
class OwnData:
    """The own datasets of a config, and which datasets it trains and evaluates on.

    Attributes:
        datasets: by name: name, annotation file and folder of images.
        train, test: names of datasets, own ones and others.
        classes: the model's, where the config tells them.
        flip_pairs: see :func:`register_coco`.
        keypoints: whether the model has keypoints.
    """

    datasets: dict[str, tuple[str, str, str]]
    train: Sequence[str]
    test: Sequence[str]
    classes: Sequence[str]
    flip_pairs: Sequence[tuple[str, str]]
    keypoints: bool

    @property
    def used(self) -> list[str]:
        return list(
            dict.fromkeys(name for name in (*self.train, *self.test) if name in self.datasets)
        )

    def are_there(self) -> bool:
        return all(os.path.exists(path) for name in self.used for path in self.datasets[name][1:])

    def register(self, weights: str) -> Metadata:
        """Registers what is used, all with the classes of the model, and returns the first's.

        Args:
            weights: the checkpoint whose classes are meant where nothing is trained.
        """
        classes = list(self.classes) or self._classes_elsewhere(weights)
        keypoints: list[str] = []
        for name in self.used:
            _, file, root = self.datasets[name]
            metadata = register_coco(
                name, file, root, classes=classes or None, keypoint_flip_pairs=self.flip_pairs
            )
            classes = metadata.thing_classes
            names = metadata.get("keypoint_names", [])
            if self.keypoints and not names:
                raise UsageError(
                    f"dataset {name!r} has no keypoints in its categories, but the model has: "
                    "choose a config without keypoints"
                )
            if self.keypoints and names != (keypoints or names):
                raise UsageError(
                    f"dataset {name!r} has the keypoints {few(names)}, but {self.used[0]!r} has "
                    f"{few(keypoints)}"
                )
            keypoints = names
        return MetadataCatalog.get(self.used[0])

    def _classes_elsewhere(self, weights: str) -> list[str]:
        """The model's classes where no own training set tells them."""
        for name in self.train:
            if name in self.datasets:
                return []
            if classes := MetadataCatalog.get(name).get("thing_classes"):
                return list(classes)
        if not self.train and os.path.isfile(weights):  # an evaluation
            return list(read_vocabulary(weights).get("thing_classes", ()))
        return []


def follow_datasets(
    cfg: CfgNode, datasets: Sequence[tuple[str, str, str]] = (), *, said: Collection[str] = ()
) -> None:
    """Registers a config's own datasets, and gives the config what follows from them, in place.

    Of ``datasets`` those whose names end in "train" become ``DATASETS.TRAIN`` and the others
    ``DATASETS.TEST``, unless these are ``said``. The model gets a class for each category and, with
    ``MODEL.KEYPOINT_ON``, the keypoints of the data; the sigmas of the object keypoint similarity
    are COCO's for keypoints of COCO's names and their mean for others.

    Args:
        cfg: whose ``DATASETS.OWN`` are meant, too.
        datasets: added to them: name, annotation file and folder of images of each.
        said: keys whose value in ``cfg`` is the user's word: it is kept, and refused if it cannot
            work.

    Raises:
        UsageError: if a dataset cannot be used, or contradicts what is said.
    """
    node = cfg.DATASETS
    train, test = _split(datasets, node.TRAIN, node.TEST, said, "DATASETS.TRAIN", "DATASETS.TEST")
    node.TRAIN, node.TEST = tuple(train), tuple(test)
    own = OwnData(
        datasets=_together(node.OWN, "DATASETS.OWN", datasets),
        train=train,
        test=test,
        classes=node.CLASSES,
        flip_pairs=node.KEYPOINT_FLIP_PAIRS,
        keypoints=cfg.MODEL.KEYPOINT_ON,
    )
    node.OWN = [list(dataset) for dataset in own.datasets.values()]
    if not own.used or (own.classes and not datasets and not own.are_there()):
        return  # a finished run whose data have gone: its config is complete without them
    metadata = own.register(cfg.MODEL.WEIGHTS)
    node.CLASSES = list(metadata.thing_classes)
    for key in CLASS_KEYS:
        _set(cfg, key, len(metadata.thing_classes), said, f"{metadata.name!r} has", "classes")
    if cfg.MODEL.KEYPOINT_ON:
        names = metadata.keypoint_names
        _set(cfg, KEYPOINTS_KEY, len(names), said, f"{metadata.name!r} has", "keypoints")
        cfg.TEST.KEYPOINT_OKS_SIGMAS = _sigmas(names, cfg.TEST.KEYPOINT_OKS_SIGMAS, SIGMAS_KEY)


def follow_datasets_lazily(
    cfg: DictConfig, datasets: Sequence[tuple[str, str, str]] = (), *, said: Collection[str] = ()
) -> None:
    """The same of a LazyConfig, whose own datasets are in ``own``, a dictionary.

    It has ``datasets`` and may have ``classes`` and ``keypoint_flip_pairs``; they mean what
    ``DATASETS.OWN``, ``CLASSES`` and ``KEYPOINT_FLIP_PAIRS`` do.

    Raises:
        UsageError: if a dataset cannot be used, or contradicts what is said.
    """
    node: Any = OmegaConf.to_container(cfg.get("own", OmegaConf.create({})))
    if unknown := set(node) - {"datasets", "classes", "keypoint_flip_pairs"}:
        raise UsageError(
            f"own.{min(unknown)} is unknown; there are own.datasets, own.classes and "
            "own.keypoint_flip_pairs"
        )
    train, test = _split(
        datasets, dataset_names(cfg, "train"), dataset_names(cfg, "test"), said, *LAZY_NAMES
    )
    head = OmegaConf.select(cfg, LAZY_KEYPOINT_HEAD)
    own = OwnData(
        datasets=_together(node.get("datasets", ()), "own.datasets", datasets),
        train=train,
        test=test,
        classes=node.get("classes", ()),
        flip_pairs=node.get("keypoint_flip_pairs", ()),
        keypoints=head is not None,
    )
    if not own.used:
        return
    for key, names in zip(LAZY_NAMES, (train, test), strict=True):
        if datasets and OmegaConf.select(cfg, key) is not None:
            OmegaConf.update(cfg, key, names[0] if len(names) == 1 else names)
    metadata = own.register(cfg.train.init_checkpoint)
    cfg.own = {
        "datasets": [list(dataset) for dataset in own.datasets.values()],
        "classes": list(metadata.thing_classes),
        "keypoint_flip_pairs": [list(pair) for pair in own.flip_pairs],
    }
    whose = f"{metadata.name!r} has"
    for key in LAZY_CLASS_KEYS:
        _set_lazily(cfg, key, len(metadata.thing_classes), said, whose, "classes")
    if head is not None:
        names = metadata.keypoint_names
        _set_lazily(
            cfg, f"{LAZY_KEYPOINT_HEAD}.num_keypoints", len(names), said, whose, "keypoints"
        )
        if "keypoint_hflip_indices" in (mapper := cfg.dataloader.train.mapper):
            mapper.keypoint_hflip_indices = create_keypoint_hflip_indices(metadata.name)
        if "evaluator" in cfg.dataloader:
            key = "dataloader.evaluator.kpt_oks_sigmas"
            sigmas = _sigmas(names, cfg.dataloader.evaluator.get("kpt_oks_sigmas", ()), key)
            cfg.dataloader.evaluator.kpt_oks_sigmas = list(sigmas)


def check_same_classes(vocabulary: Mapping[str, Any], datasets: Sequence[str]) -> None:
    """Checks before an evaluation that the classes of weights are those of the datasets.

    Args:
        vocabulary: what the weights' file says of itself; nothing is checked where it does not.
        datasets: names of registered datasets.

    Raises:
        UsageError: if a dataset has other classes, or the same in another order.
    """
    trained: list[str] = vocabulary.get("thing_classes", [])
    for name in datasets if trained else ():
        classes = classes_of(name)
        if classes and classes != trained:
            raise UsageError(
                f"the weights were trained on the classes {few(trained)}, but dataset {name!r} "
                f"has {few(classes)}; evaluate with the config.yaml of the training, or name the "
                "dataset by DATASETS.OWN, which matches classes by their names"
            )


def dataset_names(cfg: DictConfig, loader: str) -> list[str]:
    """The datasets of a LazyConfig's ``dataloader.train`` or ``dataloader.test``."""
    names = OmegaConf.select(cfg, f"dataloader.{loader}.dataset.names") or ()
    return [names] if isinstance(names, str) else list(names)


def describe(metadata: Metadata) -> str:
    """A line on what a dataset's classes and keypoints are called and taken for."""
    classes: list[str] = metadata.get("thing_classes", [])
    text = f"{metadata.name}: {len(classes)} classes ({few(classes)})"
    names = metadata.get("keypoint_names")
    if not names:
        return text
    pairs = [f"{left}/{right}" for left, right in metadata.get("keypoint_flip_map", ())]
    text += f"; {len(names)} keypoints ({few(names)})"
    return text + (
        f", of which change places in mirrored images: {few(pairs)}"
        if pairs
        else ", none of which changes places in mirrored images: where there are left and right "
        "ones, say so by DATASETS.KEYPOINT_FLIP_PAIRS"
    )


def _together(
    configured: Sequence[Any], where: str, given: Sequence[Any]
) -> dict[str, tuple[str, str, str]]:
    """Own datasets by name: those of a config, and what is given beside it with whole paths."""
    own = {dataset[0]: dataset for dataset in _checked(configured, where)}
    for name, file, root in _checked(given, "dataset"):
        own[name] = (name, os.path.abspath(file), os.path.abspath(root))
    return own


def _checked(datasets: Sequence[Any], where: str) -> list[tuple[str, str, str]]:
    for dataset in datasets:
        fits = isinstance(dataset, (list, tuple)) and len(dataset) == 3
        if not fits or not all(isinstance(part, str) and part for part in dataset):
            raise UsageError(
                f"{where}: a dataset is a name, an annotation file and a folder of images, got "
                f"{dataset!r}",
                arguments=["dataset"] if where == "dataset" else [],
            )
    names = [name for name, _, _ in datasets]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"{where}: two datasets are called {name!r}",
                arguments=["dataset"] if where == "dataset" else [],
            )
    return [(name, file, root) for name, file, root in datasets]


def _split(
    datasets: Sequence[tuple[str, str, str]],
    train: Sequence[str],
    test: Sequence[str],
    said: Collection[str],
    train_key: str,
    test_key: str,
) -> tuple[Sequence[str], Sequence[str]]:
    """What to train and to evaluate on: by the names of datasets that are given, unless said."""
    names = [dataset[0] for dataset in _checked(datasets, "dataset")]
    if names and train_key not in said:
        train = [name for name in names if name.endswith("train")]
    if names and test_key not in said:
        test = [name for name in names if not name.endswith("train")]
    return train, test


def _sigmas(names: Sequence[str], sigmas: Sequence[float], key: str) -> Sequence[float]:
    if len(sigmas) not in (0, len(names)):
        raise UsageError(
            f"{key} has {len(sigmas)} values, but the data have {len(names)} keypoints: "
            f"{few(names)}"
        )
    coco = list(names) == list(COCO_SIGMAS)
    return sigmas if len(sigmas) or coco else oks_sigmas(names)


def _set(cfg: CfgNode, key: str, value: int, said: Collection[str], who: str, what: str) -> None:
    *path, last = key.split(".")
    node = cfg
    for part in path:
        node = node[part]
    if key in said and node[last] != value:
        raise UsageError(f"{key} is {node[last]}, but dataset {who} {value} {what}")
    node[last] = value


def _set_lazily(
    cfg: DictConfig, key: str, value: int, said: Collection[str], who: str, what: str
) -> None:
    found = OmegaConf.select(cfg, key)
    if found is None or isinstance(found, DictConfig):
        return  # a model of another kind
    if key in said and found != value:
        raise UsageError(f"{key} is {found}, but dataset {who} {value} {what}")
    OmegaConf.update(cfg, key, value)
