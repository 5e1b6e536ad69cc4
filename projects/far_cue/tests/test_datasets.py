"""The checks of nl_detectron's generated sets, on those of this project."""

from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog

from far_cue import datasets
from far_cue.strips import MATCHING_KEY_CLASSES, ONE_KEY_CLASSES
from nl_detectron.data import KINDS, generate
from tests.data import kind_checks as checks

SIZE = (64, 320)
EXPECTED = {
    "people_in_skirts": checks.Expected((1, 1)),
    "far_cue_one_key": checks.Expected((3, 5), ONE_KEY_CLASSES, SIZE),
    "far_cue_lone_key": checks.Expected((3, 5), MATCHING_KEY_CLASSES, SIZE),
    "far_cue_matching_key": checks.Expected((6, 8), MATCHING_KEY_CLASSES, SIZE),
}


@pytest.fixture(scope="module", params=sorted(EXPECTED))
def generated(request, tmp_path_factory) -> tuple[str, checks.Expected, Path]:
    kind = request.param
    folder = tmp_path_factory.mktemp(kind) / "set"
    return kind, EXPECTED[kind], checks.generated_set(kind, folder)


def test_the_projects_kinds_are_registered():
    assert datasets.KINDS.keys() == EXPECTED.keys()
    assert KINDS.items() >= datasets.KINDS.items()
    assert set(DatasetCatalog) >= set(checks.names_of(EXPECTED))


def test_import_registers_below_the_root_and_writes_nothing(tmp_path, monkeypatch):
    checks.check_import_registers_below_the_root_and_writes_nothing(
        datasets, EXPECTED, tmp_path, monkeypatch
    )


def test_splits(monkeypatch):
    checks.check_splits(EXPECTED, monkeypatch)


@pytest.mark.parametrize("kind", EXPECTED)
def test_metadata_is_complete_before_loading(kind, tmp_path):
    checks.check_metadata_is_complete_before_loading(kind, EXPECTED[kind], tmp_path / "set")


@pytest.mark.parametrize("kind", EXPECTED)
def test_first_use_generates(kind, tmp_path):
    checks.check_first_use_generates(kind, EXPECTED[kind], tmp_path / "set")


@pytest.mark.parametrize("kind", EXPECTED)
def test_detectron2_maps_the_set(kind, tmp_path):
    checks.check_detectron2_maps_the_set(kind, EXPECTED[kind], tmp_path / "set")


def test_pycocotools_reads_the_set(generated):
    checks.check_pycocotools_reads_the_set(*generated)


def test_annotations_are_exact(generated):
    checks.check_annotations_are_exact(*generated)


@pytest.mark.parametrize("kind", EXPECTED)
def test_images_depend_on_seed_and_number_only(kind, tmp_path):
    checks.check_images_depend_on_seed_and_number_only(kind, tmp_path)


@pytest.mark.parametrize("kind", EXPECTED)
@pytest.mark.parametrize("larger", checks.LARGER)
def test_sizes(kind, larger, tmp_path):
    checks.check_size(kind, larger, tmp_path / "set")


def test_a_strip_cannot_be_shorter_than_the_gap_needs(tmp_path):
    message = r"at least \(64, 320\) \(height, width\) for far_cue_one_key, not \(64, 128\)"
    with pytest.raises(ValueError, match=message):
        generate(tmp_path / "set", kind="far_cue_one_key", num_images=1, size=(64, 128), seed=1)
    assert not list(tmp_path.iterdir())
