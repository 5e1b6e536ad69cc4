import pytest

from nl_detectron.engine.launch import launch, num_processes
from nl_detectron.errors import UsageError

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}


def test_the_command_line_says_how_many_processes_there_are():
    assert num_processes(3, 2) == (3, 2)


def test_torchrun_says_how_many_processes_there_are(monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert num_processes(1, 1) == (4, 2)
    with pytest.raises(UsageError, match="num_gpus 4 and num_machines 1 under torchrun"):
        num_processes(4, 1)


def test_torchrun_with_one_process_starts_no_others(monkeypatch):
    for name, value in (TORCHRUN | {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}).items():
        monkeypatch.setenv(name, value)
    assert num_processes(2, 1) == (2, 1)


@pytest.mark.parametrize(
    ("machines", "message"),
    [
        ((2, 2, "tcp://127.0.0.1:1"), "machine_rank 2 with num_machines 2: .* from 0 to 1"),
        ((1, -1, None), "machine_rank -1 with num_machines 1"),
        ((2, 0, "auto"), "dist_url auto with num_machines 2: give each machine the same tcp://"),
        ((2, 1, None), "dist_url None with num_machines 2"),
    ],
)
def test_what_cannot_work_of_machines_is_said_before_they_wait(machines, message):
    with pytest.raises(UsageError, match=message):
        launch(print, 1, *machines)
