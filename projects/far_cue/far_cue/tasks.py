"""What models are trained to do: where the answer lies far away."""

from dataclasses import dataclass
from pathlib import Path

from .measures import JOINTS, TARGETS, Measure
from .strips import MATCHING_KEY_CLASSES, ONE_KEY_CLASSES

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@dataclass(frozen=True)
class Task:
    """A task: its data, and how all models train on it.

    Attributes:
        title: in the page.
        num_classes: of the datasets.
        train, test: names of datasets.
        iterations: of a training.
        config: a file.
        measure: what counts.
        seeds: of its trainings; they were used in choosing no setting of the task.
    """

    title: str
    num_classes: int
    train: tuple[str, ...]
    test: str
    iterations: int
    config: Path = CONFIGS / "far_cue.yaml"
    measure: Measure = TARGETS
    seeds: tuple[int, ...] = (531, 532, 533, 534, 535)


TASKS = {
    "one_key": Task(
        "One key", len(ONE_KEY_CLASSES), ("far_cue_one_key_train",), "far_cue_one_key_val", 500
    ),
    # Half of the training images have a single key, from which it is learned what keys are for.
    "matching_key": Task(
        "Matching key",
        len(MATCHING_KEY_CLASSES),
        ("far_cue_lone_key_train", "far_cue_matching_key_train"),
        "far_cue_matching_key_val",
        900,
    ),
    "hidden_legs": Task(
        "Hidden legs",
        1,
        ("people_in_skirts_train",),
        "people_in_skirts_val",
        700,
        config=CONFIGS / "hidden_legs.yaml",
        measure=JOINTS,
        seeds=(502, 503, 504, 505, 506),
    ),
}
