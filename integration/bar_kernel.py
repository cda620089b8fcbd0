"""The arithmetic of bars, compiled: ticks are summed by key and minute, the sums are merged into open bars, bars that are due come out.

Everything is an int64 matrix whose columns are the names below. Holds no policy about publishing beyond `_flush`; knows nothing of
Django, clocks or files. Runs uncompiled, with the same results, under NUMBA_DISABLE_JIT=1.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

from integration.market.sessions import DAY, HOUR, MINUTE
from integration.market.ticks import FLAG_RELEASED, NEW, NO_VOLUME_CONDITIONS, OFF_MARKET_CONDITIONS, TRADE

Ints = npt.NDArray[np.int64]
Function = TypeVar("Function", bound=Callable[..., Any])

# Columns of a bar under construction. A minute's sum uses the same columns; its END is the newest time among all its trades.
START, END, DAY_END, DATE = 0, 1, 2, 3
OPEN, HIGH, LOW, CLOSE, FIRST, LAST = 4, 5, 6, 7, 8, 9
VOLUME_0, VOLUME_1, TURNOVER_0, TURNOVER_1, TURNOVER_2, COUNT = 10, 11, 12, 13, 14, 15
REVISION, REASON, MARKS = 16, 17, 18
COLUMNS: Final = 19
# A bar that comes out says in two more columns whose it is.
KEY, TIMEFRAME = 19, 20
OUT_COLUMNS: Final = 21

# No time: an empty place (START), a bar without a price (FIRST), a clock that was never told.
NEVER: Final = -(2**63)
FOREVER: Final = 2**63 - 1

# MARKS: what happened to a bar since it last came out, and for good (PARTIAL).
URGENT, ORDINARY, RELEASED, PARTIAL = 1, 2, 4, 8

REASON_FIRST, REASON_LATE, REASON_CORRECTION, REASON_CANCEL, REASON_RELEASE = 0, 1, 2, 3, 4

FRAMES: Final = 6
ONE_DAY: Final = 5
FIXED_NS: Final = (MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 4 * HOUR)

# Columns of the calendars' rows.
CAL_DATE, CAL_DAY_START, CAL_OPEN, CAL_CLOSE, CAL_UNTIL = 0, 1, 2, 3, 4

# Volume and turnover outgrow 64 bits (a day of a currency pair; price times size): they are digits to the base 2^62, lowest first,
# the highest one signed. The product of two int64 is formed from 31-bit pieces, so that no intermediate leaves int64.
DIGIT_BITS: Final = 62
DIGIT: Final = 2**62 - 1
HALF_BITS: Final = 31
HALF: Final = 2**31 - 1


def compiled(function: Function) -> Function:
    """Compile with numba, cached on disk; typed, which numba's own decorator is not."""
    return cast("Function", numba.njit(cache=True, error_model="numpy")(function))


def frozen(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Give a read-only view of a column of ticks, aligned and without strides; a copy only where it is not so.

    numba compiles a function anew, for half a second, for each combination of the types of its arguments, and may-be-written is a part of the
    type. Columns of a payload may be either, each by itself: without this a sequencer would stand still now and then for a new combination.
    """
    view = np.require(column, requirements=("C", "A")).view()
    view.flags.writeable = False
    return view


@compiled
def multiply(a: int, b: int) -> tuple[int, int, int]:
    """Give the exact product of two int64 as three digits."""
    a0, a1, a2 = a & HALF, (a >> HALF_BITS) & HALF, a >> DIGIT_BITS
    b0, b1, b2 = b & HALF, (b >> HALF_BITS) & HALF, b >> DIGIT_BITS
    cross = a0 * b1 + a1 * b0
    low = a0 * b0 + ((cross & HALF) << HALF_BITS)
    middle = a0 * b2 + a1 * b1 + a2 * b0 + (cross >> HALF_BITS) + (low >> DIGIT_BITS)
    upper = a1 * b2 + a2 * b1
    high = a2 * b2 + (upper >> HALF_BITS) + (middle >> DIGIT_BITS)
    middle = (middle & DIGIT) + ((upper & HALF) << HALF_BITS)
    return low & DIGIT, middle & DIGIT, high + (middle >> DIGIT_BITS)


@compiled
def add_amounts(into: Ints, volume_0: int, volume_1: int, turnover_0: int, turnover_1: int, turnover_2: int) -> None:
    """Add a volume and a turnover, given as digits, to those of a bar."""
    low = into[VOLUME_0] + volume_0
    into[VOLUME_0] = low & DIGIT
    into[VOLUME_1] += volume_1 + (low >> DIGIT_BITS)
    low = into[TURNOVER_0] + turnover_0
    into[TURNOVER_0] = low & DIGIT
    middle = into[TURNOVER_1] + turnover_1 + (low >> DIGIT_BITS)
    into[TURNOVER_1] = middle & DIGIT
    into[TURNOVER_2] += turnover_2 + (middle >> DIGIT_BITS)


@compiled
def set_prices(into: Ints, opened: int, high: int, low: int, close: int, first: int, last: int) -> None:
    """Let prices that arrived later than those of `into` join them: the earliest time opens, the latest closes, ties by arrival."""
    if into[FIRST] == NEVER:
        into[OPEN], into[HIGH], into[LOW], into[CLOSE] = opened, high, low, close
        into[FIRST], into[LAST] = first, last
        return
    if first < into[FIRST]:
        into[FIRST], into[OPEN] = first, opened
    if last >= into[LAST]:
        into[LAST], into[CLOSE] = last, close
    into[HIGH] = max(into[HIGH], high)
    into[LOW] = min(into[LOW], low)


@compiled
def merge(into: Ints, part: Ints) -> None:
    """Add a minute's sum, all of which arrived later, to a bar."""
    if part[FIRST] != NEVER:
        set_prices(into, part[OPEN], part[HIGH], part[LOW], part[CLOSE], part[FIRST], part[LAST])
    add_amounts(into, part[VOLUME_0], part[VOLUME_1], part[TURNOVER_0], part[TURNOVER_1], part[TURNOVER_2])
    into[COUNT] += part[COUNT]
    into[MARKS] |= part[MARKS]


@compiled
def begin(place: Ints, start: int, end: int, day_end: int, date: int) -> None:
    """Make an empty bar."""
    place[:] = 0
    place[START], place[END], place[DAY_END], place[DATE] = start, end, day_end, date
    place[FIRST] = place[LAST] = NEVER


@compiled
def _probe_key(table: npt.NDArray[np.int32], instruments: Ints, sources: Ints, instrument: int, source: int) -> int:
    # Open addressing: give the position of the key, or of the free place where it belongs.
    mask = len(table) - 1
    position = (instrument * 40503 + source * 9973) & mask
    while table[position] >= 0:
        key = table[position]
        if instruments[key] == instrument and sources[key] == source:
            return position
        position = (position + 1) & mask
    return position


@compiled
def find_or_add_key(
    table: npt.NDArray[np.int32], instruments: Ints, sources: Ints, instrument: int, source: int, count: int
) -> int:
    """Give the key's number; `count`, after storing it under that number, when it is new. The table is never full."""
    position = _probe_key(table, instruments, sources, instrument, source)
    if table[position] < 0:
        table[position] = count
        instruments[count], sources[count] = instrument, source
    return int(table[position])


@compiled
def fill_table(table: npt.NDArray[np.int32], instruments: Ints, sources: Ints, count: int) -> None:
    """Enter the first `count` keys into an empty table."""
    for key in range(count):
        table[_probe_key(table, instruments, sources, instruments[key], sources[key])] = key


@compiled
def assign_keys(
    row: int,
    kind: Any,
    action: Any,
    instrument_id: Any,
    source_id: Any,
    conditions: Any,
    key_of_row: npt.NDArray[np.int32],
    table: npt.NDArray[np.int32],
    instruments: Ints,
    sources: Ints,
    whole: npt.NDArray[np.int32],
    count: int,
) -> tuple[int, int]:
    """Number the (instrument, source) key of each row that counts, from `row` on; -1 for a row that does not.

    `whole[key]` is the instrument's consolidated key. Gives (next row, number of keys); stops early where two more keys would not fit.
    """
    for i in range(row, len(kind)):
        key_of_row[i] = -1
        bits = int(conditions[i])
        counts = bits & OFF_MARKET_CONDITIONS == 0 or bits & NO_VOLUME_CONDITIONS == 0
        if kind[i] != TRADE or action[i] != NEW or not counts:
            continue
        instrument, source = int(instrument_id[i]), max(int(source_id[i]), 0)
        key = table[_probe_key(table, instruments, sources, instrument, source)]
        if key < 0:
            if count + 2 > len(instruments):
                return i, count
            together = find_or_add_key(table, instruments, sources, instrument, 0, count)
            count = max(count, together + 1)
            key = find_or_add_key(table, instruments, sources, instrument, source, count)
            count = max(count, key + 1)
            whole[together] = whole[key] = together
        key_of_row[i] = key
    return len(kind), count


@compiled
def _find_part(
    key: int,
    start: int,
    latest: npt.NDArray[np.int32],
    table: npt.NDArray[np.int32],
    parts: Ints,
    part_key: Ints,
    count: int,
) -> int:
    # `latest` remembers each key's last part: most rows of a batch stay in the minute of the row before.
    part = latest[key]
    if part >= 0 and parts[part, START] == start:
        return int(part)
    mask = len(table) - 1
    position = (key * 40503 + start // MINUTE) & mask
    while table[position] >= 0:
        part = table[position]
        if part_key[part] == key and parts[part, START] == start:
            latest[key] = part
            return int(part)
        position = (position + 1) & mask
    table[position] = latest[key] = count
    part_key[count] = key
    begin(parts[count], start, NEVER, 0, 0)
    return count


@compiled
def sum_minutes(
    key_of_row: npt.NDArray[np.int32],
    whole: npt.NDArray[np.int32],
    ts_event: Any,
    price: Any,
    size: Any,
    conditions: Any,
    flags: Any,
    latest: npt.NDArray[np.int32],
    table: npt.NDArray[np.int32],
    parts: Ints,
    part_key: Ints,
) -> int:
    """Sum the rows by key and by minute, in order of arrival, for their source and for the instrument as a whole; give the number of sums.

    `latest` (a place per key) and `table` (a power of two, more than the sums there can be) come filled with -1; `latest` is left so.
    """
    count = 0
    for i in range(len(key_of_row)):
        key = int(key_of_row[i])
        if key < 0:
            continue
        together = int(whole[key])
        ts, bits = int(ts_event[i]), int(conditions[i])
        start = ts - ts % MINUTE
        mark = RELEASED if flags[i] & FLAG_RELEASED else ORDINARY
        turnover_0, turnover_1, turnover_2 = multiply(price[i], size[i])
        for target in (key, together):
            part = _find_part(target, start, latest, table, parts, part_key, count)
            count = max(count, part + 1)
            into = parts[part]
            into[END] = max(into[END], ts)
            into[MARKS] |= mark
            if bits & OFF_MARKET_CONDITIONS == 0:
                set_prices(into, price[i], price[i], price[i], price[i], ts, ts)
            if bits & NO_VOLUME_CONDITIONS == 0:
                add_amounts(into, size[i] & DIGIT, size[i] >> DIGIT_BITS, turnover_0, turnover_1, turnover_2)
                into[COUNT] += 1
            if target == together:
                break
    for part in range(count):
        latest[part_key[part]] = -1
    return count


@compiled
def find_session(ts: int, rows: Ints, bounds: Ints) -> int:
    """Give the row of the session that owns `ts`, -1 where the calendar has none; `bounds` is (first row, end row, owned from)."""
    low, high = bounds[0], bounds[1]
    if low == high or ts < bounds[2] or ts >= rows[high - 1, CAL_UNTIL]:
        return -1
    while low < high:
        middle = (low + high) // 2
        if rows[middle, CAL_UNTIL] > ts:
            high = middle
        else:
            low = middle + 1
    return int(low)


@compiled
def session_of(ts: int, rows: Ints, bounds: Ints, session: Ints) -> None:
    """Fill `session` with (owned from, date, day start, open, close, owned until); a UTC date where the calendar has none."""
    row = find_session(ts, rows, bounds)
    if row < 0:
        midnight = ts - ts % DAY
        session[0] = session[2] = session[3] = midnight
        session[1] = ts // DAY
        session[4] = session[5] = midnight + DAY
        return
    session[0] = rows[row - 1, CAL_UNTIL] if row > bounds[0] else bounds[2]
    session[1:] = rows[row]


@compiled
def bar_span(ts: int, frame: int, session: Ints) -> tuple[int, int]:
    """Give (start, end) of the bar of timeframe number `frame` that holds `ts`; see `SessionTable.bar_starts` for the rules."""
    owned_from, opens, closes, owned_until = session[0], session[3], session[4], session[5]
    if frame == ONE_DAY:
        return opens, closes
    length = FIXED_NS[frame]
    if frame < 3:
        start = ts - ts % length
        return start, start + length
    start = opens + (ts - opens) // length * length
    if ts < opens:
        return max(start, owned_from), min(start + length, opens)
    if ts < closes:
        return start, min(start + length, closes)
    return max(start, closes), min(start + length, owned_until)


@compiled
def _publish(bar: Ints, key: int, frame: int, out: Ints, count: int) -> int:
    # A bar that never had a price comes out with revision 0: to be kept, not to be told.
    if bar[FIRST] != NEVER or bar[REVISION] > 0:
        if bar[REVISION] == 0:
            bar[REASON] = REASON_FIRST
        elif bar[MARKS] & RELEASED:
            bar[REASON] = REASON_RELEASE
        elif bar[MARKS] & ORDINARY:
            bar[REASON] = REASON_LATE
        bar[REVISION] += 1
    out[count, :COLUMNS] = bar
    out[count, KEY], out[count, TIMEFRAME] = key, frame
    bar[MARKS] &= PARTIAL
    return count + 1


@compiled
def _flush(key: int, frontier: int, grace: int, places: Ints, out: Ints, count: int) -> tuple[int, int]:
    # Give (number of bars out, when the key is due next). A bar closes when the frontier passes its end and the grace. The day's bar
    # comes out then, stays open for what its trading day still sees, and comes out a last time when that is over; between the two
    # at once when a price or the session's own numbers changed (URGENT), while volume after hours waits.
    due = FOREVER
    for frame in range(FRAMES):
        for side in range(2):
            bar = places[frame, side]
            if bar[START] == NEVER:
                continue
            end = bar[END] + grace
            over = bar[DAY_END] + grace if frame == ONE_DAY else end
            if over <= frontier:
                count = _publish(bar, key, frame, out, count)
                bar[START] = NEVER
                continue
            if end <= frontier and bar[MARKS] & URGENT and bar[FIRST] != NEVER:
                count = _publish(bar, key, frame, out, count)
            due = min(due, end if end > frontier else over)
    return count, due


@compiled
def _place(start: int, places: Ints) -> int:
    # Two bars of a key and timeframe can be open at once (the older one in its grace). Gives the side that holds `start`, else a free
    # one, else the older one, whose time is then over: a trade of the third has passed its end by more than the grace.
    if places[0, START] == start or (places[0, START] == NEVER and places[1, START] != start):
        return 0
    if places[1, START] == start or places[1, START] == NEVER:
        return 1
    return 0 if places[0, START] < places[1, START] else 1


@compiled
def _known_until(members: npt.NDArray[np.uint8], clocks: Ints) -> int:
    # An instrument that flows through several partitions is known up to the slowest of them.
    known = FOREVER
    for partition in range(len(members)):
        if members[partition]:
            known = min(known, clocks[partition])
    return known


@compiled
def _merge_part(
    key: int,
    part: Ints,
    session: Ints,
    before: int,
    joined: int,
    grace: int,
    places: Ints,
    late_at: Ints,
    late: Ints,
    late_count: int,
    out: Ints,
    count: int,
    due: int,
) -> tuple[int, int, int]:
    # Merge one minute's sum into the six bars that hold it; those that are over already are summed in `late`.
    for frame in range(FRAMES):
        start, end = bar_span(part[START], frame, session)
        begins = session[2] if frame == ONE_DAY else start
        over = session[5] if frame == ONE_DAY else end
        if over + grace <= before:
            if late_at[frame] < 0 or late[late_at[frame], START] != start:
                late_at[frame] = late_count
                begin(late[late_count, :COLUMNS], start, end, session[5], session[1])
                late[late_count, KEY], late[late_count, TIMEFRAME] = key, frame
                late_count += 1
            bar = late[late_at[frame], :COLUMNS]
        else:
            side = _place(start, places[frame])
            bar = places[frame, side]
            if bar[START] != start:
                if bar[START] != NEVER:
                    count = _publish(bar, key, frame, out, count)
                begin(bar, start, end, session[5], session[1])
            due = min(due, end + grace)
        merge(bar, part)
        if part[FIRST] != NEVER or part[START] < end:
            bar[MARKS] |= URGENT
        if begins < joined:
            bar[MARKS] |= PARTIAL
    return late_count, count, due


@compiled
def apply_minutes(
    order: Ints,
    parts: Ints,
    part_key: Ints,
    places: Ints,
    frontier: Ints,
    due: Ints,
    joined: Ints,
    members: npt.NDArray[np.uint8],
    calendar: npt.NDArray[np.int32],
    calendar_bounds: Ints,
    calendar_rows: Ints,
    clocks_before: Ints,
    clocks: Ints,
    partition: int,
    partition_joined: int,
    grace: int,
    late: Ints,
    out: Ints,
) -> tuple[int, int]:
    """Merge the minutes' sums, in `order` of key and time, into the open bars of one partition's keys.

    What is late is judged by what was known before this batch: the rows of one batch are never late among themselves.
    Gives (number of bars in `late`, number in `out`); both need room for 6 and 18 rows per sum.
    """
    late_count = count = i = 0
    session, late_at = np.empty(6, np.int64), np.empty(FRAMES, np.int64)
    while i < len(order):
        key = part_key[order[i]]
        known = _known_until(members[key], clocks_before)
        before = max(frontier[key], clocks_before[partition] if known == FOREVER else known)
        if not members[key, partition]:
            members[key, partition] = 1
            joined[key] = max(joined[key], partition_joined)
        newest = before
        late_at[:] = -1
        while i < len(order) and part_key[order[i]] == key:
            part = parts[order[i]]
            newest = max(newest, part[END])
            session_of(part[START], calendar_rows, calendar_bounds[calendar[key]], session)
            late_count, count, due[key] = _merge_part(
                key,
                part,
                session,
                before,
                joined[key],
                grace,
                places[key],
                late_at,
                late,
                late_count,
                out,
                count,
                due[key],
            )
            i += 1
        frontier[key] = max(newest, _known_until(members[key], clocks))
        if due[key] <= frontier[key]:
            count, due[key] = _flush(key, frontier[key], grace, places[key], out, count)
    return late_count, count


@compiled
def close_due(
    keys: int,
    clock: int,
    clocks: Ints,
    members: npt.NDArray[np.uint8],
    places: Ints,
    frontier: Ints,
    due: Ints,
    grace: int,
    out: Ints,
) -> int:
    """Let the bars out that the clock has passed; give their number. `out` needs room for 12 rows per key that is due."""
    count = 0
    for key in range(keys):
        if due[key] > clock:
            continue
        frontier[key] = max(frontier[key], _known_until(members[key], clocks))
        count, due[key] = _flush(key, frontier[key], grace, places[key], out, count)
    return count


@compiled
def find_due(keys: int, places: Ints, frontier: Ints, grace: int, due: Ints) -> None:
    """Work out anew, after a restart, when each key is due next."""
    for key in range(keys):
        due[key] = FOREVER
        for frame in range(FRAMES):
            for side in range(2):
                bar = places[key, frame, side]
                if bar[START] == NEVER:
                    continue
                end = bar[END] + grace
                over = bar[DAY_END] + grace if frame == ONE_DAY else end
                due[key] = min(due[key], end if end > frontier[key] else over)
