"""The first screens, always on: signs, crossed quotes, impossible times; and the flags of what is odd but stored.

Pure: columns in, codes and flags out. State is the newest `ts_event` of each (source, instrument), so that a late tick is told.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from integration.market import errors
from integration.market.reference import Reference
from integration.market.ticks import (
    FLAG_LATE,
    FLAG_LOCKED,
    FLAG_OFF_MARKET,
    FLAG_TIME_UNVERIFIED,
    NO_VOLUME_CONDITIONS,
    OFF_MARKET_CONDITIONS,
    QUOTE,
    TRADE,
    Column,
    Mask,
    Ticks,
)
from integration.market.times import text_from_ns
from integration.market.units import text_from_nanos

# Position in this tuple + 1 is the number a screened row carries; 0 is "passes".
CODES: Final = (errors.FUTURE, errors.ANCIENT, errors.SIZE_SIGN, errors.PRICE_SIGN, errors.CROSSED)
_FUTURE, _ANCIENT, _SIZE_SIGN, _PRICE_SIGN, _CROSSED = range(1, len(CODES) + 1)


@dataclass(slots=True)
class ScreenState:
    """The newest `ts_event` seen, one array indexed by instrument_id per source."""

    newest: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict)


@dataclass(slots=True)
class Screened:
    """For each tick: 0, or 1 + its place in `CODES`; the flags to add; and the state after the ticks that pass."""

    codes: npt.NDArray[np.uint8]
    flags: npt.NDArray[np.uint32]
    state: ScreenState


def screen(
    ticks: Ticks,
    reference: Reference,
    state: ScreenState,
    *,
    trust_time: bool = True,
    waived: Collection[str] = (),
) -> Screened:
    """Judge each tick by the first screens.

    With `trust_time` false (our clock and the broker's disagree) times only flag. `waived` are codes that an operator lets
    through: the others still hold, and what passes by a waiver alone makes no other tick late. The state given is not changed.
    """
    codes, flags = _judge(ticks, reference, frozenset(), trust_time=trust_time)
    late, after = _late(ticks, codes == 0, reference.instrument_count, state)
    flags[late] |= FLAG_LATE
    if waived and codes.any():
        codes, _ = _judge(
            ticks,
            reference,
            frozenset(CODES.index(code) + 1 for code in waived if code in CODES),
            trust_time=trust_time,
        )
    return Screened(codes, flags, after)


def _judge(
    ticks: Ticks, reference: Reference, waived: frozenset[int], *, trust_time: bool
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint32]]:
    codes = _sign_codes(ticks, reference, waived)
    flags = np.zeros(len(ticks), np.uint32)
    flags[(ticks.kind == TRADE) & ((ticks.conditions & np.uint32(OFF_MARKET_CONDITIONS)) != 0)] |= FLAG_OFF_MARKET
    if _CROSSED not in waived:
        _judge_crossed(ticks, reference, codes, flags)
    _judge_times(ticks, reference, codes, flags, waived, trust_time=trust_time)
    return codes, flags


def detail(ticks: Ticks, at: int, code: str) -> str:
    """Say in words what was wrong with the tick at position `at`: every number exact, every time ISO 8601 with nine digits."""
    if code in (errors.FUTURE, errors.ANCIENT):
        return _time_detail(int(ticks.ts_event[at]), int(ticks.ts_publish[at]))
    price, ask_price = int(ticks.price[at]), int(ticks.ask_price[at])
    if code == errors.CROSSED:
        return f"bid must not be above ask, was {text_from_nanos(price)} > {text_from_nanos(ask_price)}"
    is_quote = ticks.kind[at] == QUOTE
    if code == errors.SIZE_SIGN:
        size, ask_size = text_from_nanos(int(ticks.size[at])), text_from_nanos(int(ticks.ask_size[at]))
        if is_quote:
            return f"sizes must not be negative, was bid size {size}, ask size {ask_size}"
        return f"size must be positive, was {size}"
    if is_quote:
        prices = f"bid {text_from_nanos(price)}, ask {text_from_nanos(ask_price)}"
        return f"prices must be positive for this instrument, was {prices}"
    return f"price must be positive for this instrument, was {text_from_nanos(price)}"


def _time_detail(ts_event: int, ts_publish: int) -> str:
    ahead = ts_event - ts_publish
    distance = f"{text_from_nanos(abs(ahead))} s {'after' if ahead > 0 else 'before'}"
    return (
        "ts_event must be near the broker's publish time, "
        f"was {text_from_ns(ts_event)}: {distance} {text_from_ns(ts_publish)}"
    )


def _sign_codes(ticks: Ticks, reference: Reference, waived: frozenset[int]) -> npt.NDArray[np.uint8]:
    codes = np.zeros(len(ticks), np.uint8)
    is_trade = ticks.kind == TRADE
    needs_positive = ~reference.allows_negative[ticks.instrument_id]
    bad_price = (ticks.price <= 0) | ((ticks.kind == QUOTE) & (ticks.ask_price <= 0))
    if _PRICE_SIGN not in waived:
        codes[needs_positive & bad_price] = _PRICE_SIGN
    # Official prices are prints without a size of their own; any other trade without one is a mistake.
    may_be_empty = (ticks.conditions & np.uint32(NO_VOLUME_CONDITIONS)) != 0
    bad_trade = is_trade & ((ticks.size < 0) | ((ticks.size == 0) & ~may_be_empty))
    if _SIZE_SIGN not in waived:
        codes[bad_trade | ((ticks.size < 0) | (ticks.ask_size < 0))] = _SIZE_SIGN
    return codes


def _judge_crossed(
    ticks: Ticks, reference: Reference, codes: npt.NDArray[np.uint8], flags: npt.NDArray[np.uint32]
) -> None:
    touching = np.flatnonzero((ticks.kind == QUOTE) & (ticks.price >= ticks.ask_price) & (codes == 0))
    for at in touching.tolist():
        bid, ask = int(ticks.price[at]), int(ticks.ask_price[at])
        limit = reference.source_by_id[int(ticks.source_id[at])].crossed_limit_bps
        if (bid - ask) * 10_000 > limit * abs(ask):
            codes[at] = _CROSSED
        else:
            flags[at] |= FLAG_LOCKED


def _judge_times(
    ticks: Ticks,
    reference: Reference,
    codes: npt.NDArray[np.uint8],
    flags: npt.NDArray[np.uint32],
    waived: frozenset[int],
    *,
    trust_time: bool,
) -> None:
    ahead = ticks.ts_event - ticks.ts_publish
    for source_id in _distinct(ticks.source_id):
        facts = reference.source_by_id[source_id]
        here = ticks.source_id == source_id
        future, ancient = here & (ahead > facts.future_limit_ns), here & (ahead < -facts.ancient_limit_ns)
        if not trust_time:
            flags[future | ancient] |= FLAG_TIME_UNVERIFIED
            continue
        if _FUTURE not in waived:
            codes[future] = _FUTURE
        if _ANCIENT not in waived:
            codes[ancient] = _ANCIENT


def _late(ticks: Ticks, passes: Mask, instrument_count: int, state: ScreenState) -> tuple[Mask, ScreenState]:
    """Find ticks older than a newer one of their source and instrument; give the state after the batch."""
    from quality.kernels import mark_late

    after = dict(state.newest)
    late = np.zeros(len(ticks), np.bool_)
    for source_id in _distinct(ticks.source_id[passes]):
        known = after.get(source_id, np.zeros(0, np.int64))
        newest = np.zeros(max(instrument_count, len(known)), np.int64)
        newest[: len(known)] = known
        rows = np.flatnonzero(passes & (ticks.source_id == source_id))
        mark_late(rows, ticks.instrument_id, ticks.ts_event, newest, late)
        after[source_id] = newest
    return late, ScreenState(after)


def _distinct(column: Column) -> list[int]:
    """Give the distinct values; one comparison where there is but one, as in most batches."""
    if len(column) and (column == column[0]).all():
        return [int(column[0])]
    return [int(value) for value in np.unique(column)]


def pack_state(state: ScreenState) -> bytes:
    """Write a screen state; equal states give equal bytes."""
    return msgspec.msgpack.encode({source_id: newest.tobytes() for source_id, newest in sorted(state.newest.items())})


def unpack_state(data: bytes) -> ScreenState:
    """Read what `pack_state` wrote."""
    arrays = msgspec.msgpack.decode(data, type=dict[int, bytes])
    return ScreenState({source_id: np.frombuffer(newest, np.int64) for source_id, newest in arrays.items()})
