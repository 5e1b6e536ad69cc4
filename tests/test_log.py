"""Log lines hold names that are anybody's."""

from nl_detectron.log import logger


def test_names_cannot_steer_a_terminal(log):
    logger.warning("read %s\nthe second line", "a\x1b]0;title\x07.jpg")
    assert set(log.messages) == {"read a\\x1b]0;title\\x07.jpg\nthe second line"}
    logger.info("100 %")
    assert log.messages[-1] == "100 %"
