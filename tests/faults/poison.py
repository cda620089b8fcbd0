"""A decoder that dies, as a bad offset in native code would. Imports no Django, so that a child process can load it."""

import os
from collections.abc import Sequence

from integration.market.events import decode
from integration.market.ticks import Decoded, Message

MARK = b"poison-mark"
# The process that is not to die: there the death is an exception that no rule catches.
SPARED = "POISON_SPARES"


class Killed(BaseException):
    """Stands for a sudden death inside a test's own process: no rule of the loop may catch it."""


def die_on_mark(messages: Sequence[Message]) -> Decoded:
    """Decode, unless a message holds the mark: then the process ends."""
    if any(MARK in message.data for message in messages):
        if os.environ.get(SPARED) == str(os.getpid()):
            raise Killed
        os._exit(139)
    return decode(messages)
