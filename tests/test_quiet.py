"""What was left out of the log is left out for a while only: the next training in the process says all of it."""

import logging

import pytest

from w2s_plugins.quiet import quietly, unsaid


def test_all_but_what_was_left_out_before(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(KeyError), quietly():
        with quietly(logging.INFO):
            logging.warning("inside")
        logging.warning("a plan within a plan")
        raise KeyError
    logging.info("afterwards")
    with quietly(logging.INFO):
        logging.info("chatter")
        logging.warning("a warning")
    assert caplog.messages == ["afterwards", "a warning"]


def test_one_module(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    logger, other = logging.getLogger("w2s_plugins.x"), logging.getLogger("w2s_plugins.y")
    with unsaid("w2s_plugins.x"):
        logger.info("left out")
        logger.warning("a warning")
        other.info("another one")
    logger.info("afterwards")
    assert caplog.messages == ["a warning", "another one", "afterwards"]
