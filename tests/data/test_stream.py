"""The samples of a training do not depend on workers, processes or where it goes on."""

import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm

from nl_detectron.data.seeds import SAMPLE, STEP, derive, drawing_from, seed_all
from nl_detectron.data.stream import as_it_is, stream_of, with_own_generator

RECORDS = [
    {"file_name": str(i), "width": 4 + i % 3, "height": 5, "annotations": []} for i in range(10)
]
FACTORS = torch.tensor([1.0, 2.5] * 5)
SAMPLERS = {
    "training": lambda: TrainingSampler(10),
    "repeats": lambda: RepeatFactorTrainingSampler(FACTORS),
    "subset": lambda: RandomSubsetTrainingSampler(10, 0.6),
}


def drawn(record: dict) -> dict:
    """A sample with something of each generator."""
    return record | {"drawn": (random.random(), np.random.rand(), torch.rand(1).item())}


def make(*, start=0, workers=0, grouped=True, batch=2, seed=7, sampler="training", mapper=drawn):
    with drawing_from(seed):
        plan = build_detection_train_loader(
            RECORDS,
            mapper=as_it_is,
            sampler=SAMPLERS[sampler](),
            total_batch_size=batch,
            aspect_ratio_grouping=grouped,
        )
    stream = stream_of(plan, mapper, RECORDS, seed=seed)
    stream.start = start
    return with_own_generator(
        build_detection_train_loader(
            stream,
            mapper=None,
            total_batch_size=batch,
            aspect_ratio_grouping=False,
            num_workers=workers,
        )
    )


def take(loader, number: int) -> list[list[tuple]]:
    batches = itertools.islice(loader, number)
    return [[(sample["file_name"], *sample["drawn"]) for sample in batch] for batch in batches]


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_batches_are_those_of_detectron2(grouped, sampler):
    ours = make(grouped=grouped, sampler=sampler)
    with drawing_from(7):
        theirs = build_detection_train_loader(
            RECORDS,
            mapper=as_it_is,
            sampler=SAMPLERS[sampler](),
            total_batch_size=2,
            aspect_ratio_grouping=grouped,
        )
    expected = [[r["file_name"] for r in batch] for batch in itertools.islice(theirs, 12)]
    assert [[sample[0] for sample in batch] for batch in take(ours, 12)] == expected


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_batch_can_be_the_first_one(grouped, sampler):
    whole = take(make(grouped=grouped, sampler=sampler), 13)
    assert len({sample[1] for batch in whole for sample in batch}) == 26  # each draws for itself
    for start in (1, 2, 9):
        assert take(make(grouped=grouped, sampler=sampler, start=start), 4) == whole[start:][:4]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_change_nothing(workers):
    expected = take(make(), 11)
    assert take(make(workers=workers), 11) == expected
    assert take(make(workers=workers, start=4), 7) == expected[4:]


def test_no_image_of_the_batches_before_is_read():
    read = []
    loader = make(start=500, mapper=lambda record: read.append(record) or drawn(record))
    assert len(take(loader, 2)) == 2 and len(read) == 4


def test_the_seed_decides():
    assert take(make(seed=8), 3) != take(make(), 3)
    assert take(make(), 3) == take(make(), 3)


@pytest.mark.parametrize("grouped", [True, False])
def test_nothing_is_drawn_from_the_generators_of_the_training(grouped):
    seed_all(5)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    seed_all(5)
    take(make(grouped=grouped), 3)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_two_processes_have_the_samples_of_one(monkeypatch):
    expected = take(make(batch=4, grouped=False), 3)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr("detectron2.data.build.get_world_size", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(comm, "shared_random_seed", lambda: 11)
        shares.append(take(make(batch=4, grouped=False), 3))
    monkeypatch.setattr(comm, "get_world_size", lambda: 1)
    monkeypatch.setattr(comm, "get_rank", lambda: 0)
    monkeypatch.setattr("detectron2.data.build.get_world_size", lambda: 1)
    expected = take(make(batch=4, grouped=False), 3)
    together = [sorted(a + b) for a, b in zip(*shares, strict=True)]
    assert together == [sorted(batch) for batch in expected]


def test_loaders_of_others_have_no_stream():
    loader = torch.utils.data.DataLoader(RECORDS, batch_size=2)
    assert stream_of(loader, drawn, RECORDS, seed=1) is None
    assert stream_of(RECORDS, drawn, RECORDS, seed=1) is None


def test_each_place_has_a_seed_of_its_own():
    places = [(use, i, rank) for use in (STEP, SAMPLE) for i in range(50) for rank in (0, 1)]
    seeds = {derive(3, *place) for place in places} | {derive(4, *places[0])}
    assert len(seeds) == 201 and all(0 <= seed < 2**63 for seed in seeds)
    assert derive(3, STEP, 5, 0) == derive(3, STEP, 5, 0)
