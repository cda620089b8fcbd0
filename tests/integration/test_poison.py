"""Poison: what ends a process is found by halves in children; a child that cannot start blames nobody; attempts survive a death."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from integration.market.errors import RetriableError
from integration.market.events import decode
from integration.market.ticks import Decoded, Message
from integration.poison import MAX_ATTEMPTS, InFlight, find_poison
from tests.e2e.events import arrow, messages, trade
from tests.faults.poison import MARK, die_on_mark


def raise_on_mark(given: Sequence[Message]) -> Decoded:
    """Raise where the other decoder dies: that is an answer."""
    if any(MARK in message.data for message in given):
        raise ZeroDivisionError
    return decode(given)


def die_always(given: Sequence[Message]) -> Decoded:
    """Die whatever is given."""
    os._exit(1)


def poisonous(*places: int, count: int = 3) -> list[Message]:
    return messages(*(trade(at).replace(b"t-", MARK if at in places else b"t-") for at in range(1, count + 1)))


@pytest.mark.parametrize("places", [(), (2,), (1, 3)])
def test_the_messages_that_kill_are_found(places: tuple[int, ...]) -> None:
    assert find_poison(poisonous(*places), die_on_mark) == [place - 1 for place in places]


def test_exception_is_no_poison() -> None:
    assert find_poison(poisonous(3), raise_on_mark) == []


def test_child_that_cannot_even_decode_nothing_blames_no_message() -> None:
    with pytest.raises(RetriableError):
        find_poison(poisonous(), die_always)


def test_damaged_streams_end_no_process() -> None:
    """Every byte of a stream turned over, one after the other: the decoder answers, in this very process."""
    stream = arrow([1, 2, 3])
    for at in range(len(stream)):
        damaged = bytearray(stream)
        damaged[at] ^= 0xFF
        decode(messages(bytes(damaged)))


def test_attempts_are_counted_over_deaths_and_forgotten_once_it_came_back(tmp_path: Path) -> None:
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert InFlight(tmp_path, "p").begin(messages(trade(1), trade(2))) == (attempt == MAX_ATTEMPTS)
    assert not InFlight(tmp_path, "other").begin(messages(trade(1)))
    InFlight(tmp_path, "p").done()
    assert not InFlight(tmp_path, "p").begin(messages(trade(1)))
    assert not InFlight(tmp_path, "p").begin(messages(trade(2)))


def test_suspect_is_known_again_when_what_comes_is_cut_in_other_places(tmp_path: Path) -> None:
    for _ in range(2):
        note = InFlight(tmp_path, "p")
        assert not note.begin(messages(trade(1)))
        note.done()
        assert not note.begin(messages(trade(2), trade(3)))  # and this ends the process
    note = InFlight(tmp_path, "p")
    assert not note.begin(messages(trade(1)))
    note.done()
    assert note.begin(messages(trade(9), trade(2)))
    note.done()
    assert not InFlight(tmp_path, "p").begin(messages(trade(2)))


def test_suspect_that_never_comes_again_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("integration.poison._LOOK_FOR", 3)
    for _ in range(2):
        InFlight(tmp_path, "p").begin(messages(trade(1)))
    note = InFlight(tmp_path, "p")
    for number in range(2, 6):
        note.begin(messages(trade(number)))
        note.done()
    assert not note.begin(messages(trade(1)))


def test_death_on_other_messages_makes_those_the_suspects(tmp_path: Path) -> None:
    for _ in range(2):
        InFlight(tmp_path, "p").begin(messages(trade(1)))
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert InFlight(tmp_path, "p").begin(messages(trade(5))) == (attempt == MAX_ATTEMPTS)
