"""librdkafka in commands that print: its own log lines would stand between theirs."""

import logging


def quiet_log() -> logging.Logger:
    """A logger that shows nothing; what goes wrong is raised anyway."""
    logger = logging.getLogger("livevec.librdkafka")
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    return logger
