"""Detectron2's DetectionCheckpointer: safe in what it reads, strict in what it loads."""

import json
import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs

import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from torch import nn

from ..config import block_nodes, renamed_keys
from ..errors import few
from ..files import AtomicPathManager, write_again
from ..finite import named_tensors, not_finite
from ..layers import block_kind, non_local_blocks
from ..layers.options import LEARNED_OPTIONS
from ..log import logger
from .download import local_copy
from .matching import match_names
from .reading import (
    CheckpointError,
    as_detectron2,
    as_tensors,
    caffe2_to_detectron2,
    read_checkpoint,
)
from .report import LoadReport, broken_numbers, classify
from .safety.texts import read_yaml
from .vocabulary import to_text
from .writing import versions, write_safetensors

# What is in the names of the blocks of each node of the config
PARTS = {
    "MODEL.NON_LOCAL": ".",
    "MODEL.FPN.NON_LOCAL": ".backbone.nl",
    "MODEL.ROI_BOX_HEAD.NON_LOCAL": ".box_head.",
    "MODEL.ROI_MASK_HEAD.NON_LOCAL": ".mask_head.",
    "MODEL.ROI_KEYPOINT_HEAD.NON_LOCAL": ".keypoint_head.",
}


class NonLocalCheckpointer(DetectionCheckpointer):
    """Loads and saves as Detectron2 does, for any model, except that

    - reading a file executes nothing of it (see :func:`read_checkpoint`), and a downloaded file is
      checked against the digest that its name or our list states;
    - ``.safetensors`` files load, too;
    - each load logs one table (:class:`LoadReport`, then in ``report``), and a load that leaves
      the model half pretrained is an error;
    - names are matched by :func:`match_names`, never to another layer;
    - a file is written in one step, with the config and the versions inside.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        trust: bool = False,
        allow_missing: bool = False,
        complete: bool = False,
        cfg: CfgNode | None = None,
        metadata: Metadata | None = None,
        safetensors: bool = False,
        on_error: str = "stop",
        **checkpointables: Any,
    ):
        """
        Args:
            save_dir, save_to_disk, checkpointables: see :class:`DetectionCheckpointer`.
            trust: execute what a pickle names when it is loaded.
            allow_missing: go on after any load; the report is logged all the same.
            complete: every tensor must come from the file, as for an evaluation. Otherwise, as
                for training, new blocks may start at zero and, when the file holds a pretrained
                ResNet alone, all other parts at random. To resume, every tensor must be there.
            cfg: saved with the weights, see :func:`read_config`, and compared with the config in a
                file that is loaded.
            metadata: of the dataset trained on: the names of classes and keypoints in it are saved
                with the weights, see :func:`read_vocabulary`.
            safetensors: save the weights as ``.safetensors``, too.
            on_error: "stop" or "continue" where a checkpoint cannot be written after some tries.
        """
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.pauses: Sequence[float] = (1.0, 5.0)
        self.path_manager: AtomicPathManager = AtomicPathManager(self.path_manager)
        self.trust = trust
        self.allow_missing = allow_missing
        self.complete = complete
        self.cfg = cfg
        self.metadata = metadata
        self.safetensors = safetensors
        self.on_error = on_error
        self.report: LoadReport | None = None
        self._must_be_complete = complete
        self._query: dict[str, list[str]] = {}
        self._states: list[str] = []
        self._is_last = True

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """As :meth:`DetectionCheckpointer.load`.

        Raises:
            CheckpointError: if the file is not there, not safe or not what it should be, or if the
                model would be left half loaded.
        """
        self.report = None
        if not path:
            return super().load(path, checkpointables)
        address, _, query = path.partition("?")
        local_copy(self.path_manager, address, trust=self.trust)
        resumes = checkpointables is None and bool(self.checkpointables)
        self._must_be_complete = self.complete or resumes
        self._states = list(self.checkpointables) if checkpointables is None else checkpointables
        self._query = parse_qs(query)
        try:
            content = super().load(path, checkpointables)
        finally:
            self._parsed_url_during_load = None  # which super() leaves when it fails
        self._compare_blocks(content.get("config"))
        return content

    def save(self, name: str, *, is_last: bool = True, **kwargs: Any) -> None:
        """As :meth:`Checkpointer.save`, with the config as YAML text and the versions inside.

        Args:
            is_last: training resumes from this one.

        Raises:
            CheckpointError: if it cannot be written, unless ``on_error`` is "continue".
        """
        if not self.save_dir or not self.save_to_disk:
            return
        self._is_last = is_last
        path = os.path.join(self.save_dir, f"{name}.pth")
        try:
            write_again(
                lambda: self._write(name, **kwargs), f"checkpoint {path}", pauses=self.pauses
            )
        except OSError as error:
            last = self.get_checkpoint_file() if self.has_checkpoint() else "none"
            if self.on_error == "stop":
                raise CheckpointError(
                    f"{error}. The last good one is {last}: make room, then resume",
                    arguments=["resume"],
                ) from error
            logger.error(f"ALARM: {error}. Training goes on; the last good one is {last}")

    def _write(self, name: str, **kwargs: Any) -> None:
        os.makedirs(self.save_dir, exist_ok=True)  # where somebody has removed it
        if broken := not_finite(self.model.state_dict()):
            raise CheckpointError(
                f"checkpoint {name} is not written: {len(broken)} of its tensors have numbers that "
                f"are not finite: {few(broken, 3)}"
            )
        about: dict[str, Any] = {"versions": versions()}
        if self.cfg is not None:
            about["config"] = self.cfg.dump()
        if self.metadata is not None:
            about["vocabulary"] = to_text(self.metadata)
        super().save(name, **about, **kwargs)
        if self.safetensors:
            path = os.path.join(self.save_dir, f"{name}.safetensors")
            about["versions"] = json.dumps(about["versions"])
            write_safetensors(path, self.model.state_dict(), about)

    def save_in(self, folder: str, name: str, **kwargs: Any) -> None:
        """As :meth:`save`, in another folder."""
        own: str = self.save_dir
        self.save_dir: str = folder
        try:
            self.save(name, **kwargs)
        finally:
            self.save_dir = own

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        if self._is_last:
            super().tag_last_checkpoint(last_filename_basename)

    def _compare_blocks(self, stored: object) -> None:
        """Warns of what blocks compute otherwise than in training, which no tensor shows."""
        if self.cfg is None or not isinstance(stored, str):
            return
        try:
            trained, _ = renamed_keys(read_yaml(stored))
            if "NON_LOCAL" not in trained["MODEL"]:
                return  # of a model without blocks, or not of ours
            nodes = {name: _at(trained, name) for name in PARTS}
        except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError, RecursionError):
            return
        blocks, ours = non_local_blocks(self.model), block_nodes(self.cfg)
        for node, part in PARTS.items():
            then, now = nodes[node], ours[node]
            if not any(part in f".{block}" for block in blocks):
                continue
            used = block_kind(now.BLOCK).USES
            keys = [key for key in LEARNED_OPTIONS if key.lower() in used]
            for key in (*keys, "ADD_MEAN"):
                if key in now and then.get(key, now[key]) != now[key]:
                    logger.warning(
                        f"The weights were trained with {node}.{key} {then[key]}, but the config "
                        f"has {now[key]}: blocks do not compute what they have learned"
                    )

    def _load_file(self, filename: str) -> dict[str, Any]:
        # None of Detectron2's own readers, which unpickle, is called.
        content = as_detectron2(read_checkpoint(filename, trust=self.trust), filename)
        if filename.endswith((".pkl", ".pyth")):
            return content
        query = dict(self._query)
        if query.pop("matching_heuristics", ["False"]) == ["True"]:
            content["matching_heuristics"] = True
        if query:
            raise CheckpointError(
                f"{filename}: unknown {', '.join(query)} after the question mark; there is only "
                "matching_heuristics=True"
            )
        return content

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        checkpoint["model"] = as_tensors(checkpoint["model"])
        if checkpoint.pop("matching_heuristics", False):
            weights = caffe2_to_detectron2(checkpoint)
            checkpoint["model"] = match_names(self.model.state_dict(), weights)
        weights = checkpoint["model"]  # whose names super() changes in place
        if problem := broken_numbers(weights):
            self._go_on_or_raise(problem)
        # Such as what an optimizer averages, which no step would mend.
        states = [(key, checkpoint[key]) for key in self._states if key in checkpoint]
        tensors = dict(pair for key, state in states for pair in named_tensors(state, key))
        if problem := broken_numbers(tensors, "the training's state"):
            self._go_on_or_raise(problem)
        incompatible = super()._load_model(checkpoint)
        self.report = classify(self.model, weights, *incompatible)
        return incompatible

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        logger.info(f"Loaded tensors:\n{self.report}")
        assert self.report is not None  # as _load_model comes before
        problem = self.report.problem(complete=self._must_be_complete)
        if problem is None:
            return
        self._go_on_or_raise(
            f"the weights do not fit the model: {problem}. The log has a table of all"
        )

    def _go_on_or_raise(self, problem: str) -> None:
        if not self.allow_missing:
            raise CheckpointError(
                f"{problem}; allow_missing=True goes on all the same", arguments=["allow_missing"]
            )
        logger.warning(f"Going on as allow_missing says, although {problem}")


def _at(config: Any, path: str) -> dict[str, Any]:
    """The node of a loaded config; empty where older ones have none."""
    for key in path.split("."):
        config = config.get(key, {})
    return dict(config)
