"""Ticks as bytes: the payload of a batch gives back every column, whatever is constant in it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration.market.ticks import TICK_COLUMNS, Ticks
from integration.rows import (
    COPY_HEAD,
    COPY_TAIL,
    PAYLOAD_COLUMNS,
    TRADE_LAYOUT,
    copy_pieces,
    pack_payload,
    unpack_payload,
)


def ticks_from(seed: int, length: int, constant: frozenset[str]) -> Ticks:
    random = np.random.default_rng(seed)
    ticks = Ticks.zeros(length)
    for name, dtype in TICK_COLUMNS.items():
        limits = np.iinfo(np.dtype(dtype).name)
        size = 1 if name in constant else length
        values = random.integers(limits.min, limits.max, size, dtype=dtype, endpoint=True)
        setattr(ticks, name, np.resize(values, length))
    return ticks


@given(st.integers(0, 2**32), st.integers(1, 40), st.frozensets(st.sampled_from(PAYLOAD_COLUMNS)))
def test_a_payload_gives_back_every_column(seed: int, length: int, constant: frozenset[str]) -> None:
    ticks = ticks_from(seed, length, constant)
    back = unpack_payload(pack_payload(ticks))
    for name in PAYLOAD_COLUMNS:
        column = getattr(back, name)
        assert column.dtype == TICK_COLUMNS[name]
        assert column.tolist() == getattr(ticks, name).tolist()


def test_no_ticks_are_no_bytes() -> None:
    assert pack_payload(Ticks.zeros(0)) == b""
    assert len(unpack_payload(b"")) == 0


def test_columns_of_one_value_take_no_room() -> None:
    every, few = ticks_from(1, 5_000, frozenset()), ticks_from(1, 5_000, frozenset(PAYLOAD_COLUMNS) - {"price"})
    assert len(pack_payload(few)) < len(pack_payload(every)) / 8


def test_equal_ticks_have_equal_bytes() -> None:
    assert pack_payload(ticks_from(3, 100, frozenset())) == pack_payload(ticks_from(3, 100, frozenset()))


@pytest.mark.parametrize("length", [1, 2])
def test_a_batch_of_constants_keeps_its_length(length: int) -> None:
    assert len(unpack_payload(pack_payload(Ticks.zeros(length)))) == length


@pytest.mark.parametrize("length", [1, 2_048, 2_049, 10_000])
def test_copy_data_is_the_same_in_pieces(length: int) -> None:
    ticks = ticks_from(2, length, frozenset())
    row_bytes = 2 + sum(4 + width for _, width in TRADE_LAYOUT.values())
    pieces = list(copy_pieces("trade", ticks, 9))
    whole = b"".join(pieces)
    rows = whole[COPY_HEAD:-COPY_TAIL]
    singly = [
        b"".join(copy_pieces("trade", ticks.take(np.array([at])), 9))[COPY_HEAD:-COPY_TAIL] for at in (0, length - 1)
    ]
    assert len(pieces) == -(-length // 2_048)
    assert len(rows) == row_bytes * length
    assert [rows[:row_bytes], rows[-row_bytes:]] == singly
    assert (COPY_HEAD, whole[-COPY_TAIL:]) == (19, b"\xff\xff")
