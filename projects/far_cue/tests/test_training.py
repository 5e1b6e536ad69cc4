from itertools import islice

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.samplers import TrainingSampler

from far_cue.training import BalancedTrainer, InTurn
from far_cue.variants import build_cfg
from nl_detectron.data import register_generated
from nl_detectron.data.seeds import drawing_from


def test_groups_take_turns_and_each_goes_through_all_its_images():
    groups = [[0, 3, 5, 6], [1, 2], [4]]
    with drawing_from(1):
        sampler = InTurn(groups)
    drawn = list(islice(sampler, 24))
    for place, group in enumerate(groups):
        own = drawn[place::3]
        assert sorted(own) == sorted(group * (8 // len(group)))
        assert sorted(own[: len(group)]) == group
    assert drawn == list(islice(sampler, 24))  # the same ones each time
    with drawing_from(2):
        assert drawn != list(islice(InTurn(groups), 24))


def test_a_single_group_is_drawn_as_detectron2_does():
    with drawing_from(1):
        sampler = InTurn([list(range(7))])
    with drawing_from(1):
        plain = TrainingSampler(7)
    assert list(islice(sampler, 30)) == list(islice(plain, 30))


def test_batches_have_as_many_images_of_either_answer(tmp_path):
    name = "far_cue_one_key_for_batches"
    register_generated(name, tmp_path / "set", kind="far_cue_one_key", num_images=12, seed=3)
    cfg = build_cfg("plain", "one_key", seed=1)
    cfg.DATASETS.TRAIN = (name,)
    answers = {
        record["file_name"]: record["annotations"][0]["category_id"]
        for record in DatasetCatalog.get(name)
    }
    assert set(answers.values()) == {0, 1}
    for batch in islice(BalancedTrainer.build_train_loader(cfg), 5):
        assert [answers[image["file_name"]] for image in batch] == [0, 1] * 4
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
