"""Log lines hold names that are anybody's."""

import logging
from pathlib import Path

import pytest

from nl_detectron.log import logger, say_once_of_full_disks


def test_names_cannot_steer_a_terminal(log):
    logger.warning("read %s\nthe second line", "a\x1b]0;title\x07.jpg")
    assert set(log.messages) == {"read a\\x1b]0;title\\x07.jpg\nthe second line"}
    logger.info("100 %")
    assert log.messages[-1] == "100 %"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_log_on_a_full_disk_is_one_line_and_not_tracebacks(capsys):
    parent = logging.getLogger("detectron2")
    with open("/dev/full", "w", buffering=1, encoding="utf-8") as full:
        handler = logging.StreamHandler(full)
        parent.addHandler(handler)
        try:
            for _ in range(3):
                say_once_of_full_disks()
                logger.warning("one more line")
            handler.handle(logging.makeLogRecord({"msg": "%d", "args": ("x",)}))
        finally:
            parent.removeHandler(handler)
            handler.handleError._close()
    said = capsys.readouterr().err
    assert said.count("ALARM: /dev/full cannot be written (No space left on device)\n") == 1
    assert said.count("--- Logging error ---") == 1  # the one that is a mistake in a program
