"""What corrections need of what is stored: earlier trades by name and by minute, amendments, minutes' bars. Reads only; the fold decides.

A trade is looked for in slices near the amendment's time first, then ever further back, then after it; finished slices have an index
for it (`integration.jobs`), the newest ones are read through. The order of arrival is that of the batches' numbers; within a batch the
payload tells it, and is only asked where trades share a time.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, Final

import msgspec
from django.db import connection

from integration.bars import Bar
from integration.corrections import APPLIED, Amendment, Identity, Minute, StoredTrade, TradeKey
from integration.market.sessions import DAY, MINUTE
from integration.market.ticks import FLAG_CANCEL, FLAG_CORRECTION
from integration.models import LakeDay, Slice
from integration.rows import unpack_payload
from integration.storage import binary_cursor

# Rows of `StoredTrade`'s first eleven columns and the batch id.
TradeRow = tuple[int, ...]
# Gives the trades of (instrument, start, end) that may have left the tables; those that have not may be among them.
Older = Callable[[int, int, int], Iterable[TradeRow]]
TRADE_COLUMNS: Final = (*StoredTrade._fields[:11], "batch_id")
_TRADE_SQL: Final = ", ".join(TRADE_COLUMNS)
_IS_NEW: Final = "flags & 12 = 0"
_WIDEST: Final = 32  # slices a search reads at once: bounds the locks of one statement
_OLDER_DAYS: Final = 8  # that are searched beyond the tables, from the amendment's own day back
_EPOCH_DAY: Final = date(1970, 1, 1)

BAR_COLUMNS: Final = (
    "instrument_id", "source_id", "timeframe", "start", "end", "session_date", "open", "high", "low", "close", "volume", "turnover",
    "trade_count", "first_ts", "last_ts", "revision", "reason", "is_partial", "is_final",
)  # fmt: skip
BAR_SQL: Final = ", ".join(f'"{name}"' for name in BAR_COLUMNS)


class StoredRecords:
    """`integration.corrections.Records` on PostgreSQL; `older` reaches what has left the tables."""

    def __init__(self, older: Older | None = None) -> None:
        self._older = older

    def candidates(self, wanted: Sequence[tuple[TradeKey, int]], until: int) -> list[StoredTrade]:
        """Give trades with these keys, for each wanted time those of the slices in which the one that is meant lies."""
        if not wanted:
            return []
        ranges = list(Slice.objects.filter(table="trade").order_by("start").values_list("start", "end"))
        at = bisect_right([start for start, _ in ranges], max(ts for _, ts in wanted))
        found: list[StoredTrade] = []
        for start, end in _backward(ranges[:at]):
            found += self._numbered(_named(wanted, start, end), until)
            if not _missing(wanted, found, earlier=True):
                return found
        found += self._numbered(self._older_named(_missing(wanted, found, earlier=True)), until)
        for start, end in ranges[at:]:
            if not _missing(wanted, found, earlier=False):
                break
            found += self._numbered(_named(wanted, start, end), until)
        return found

    def trades(self, minutes: Sequence[Minute], until: int) -> list[StoredTrade]:
        """Give all trades of these minutes, in order of arrival."""
        rows: dict[Identity, TradeRow] = {}
        for start in sorted({start for _, start in minutes}):
            instruments = [instrument_id for instrument_id, minute in minutes if minute == start]
            older = (row for one in instruments if self._older for row in self._older(one, start, start + MINUTE))
            for row in (*_trades_between(start, start + MINUTE, "instrument_id", instruments), *older):
                rows.setdefault(_identity(row), row)
        return self._numbered(rows.values(), until)

    def amendments(self, minutes: Sequence[Minute], until: int) -> list[Amendment]:
        """Give the applied amendments of trades of these minutes."""
        wanted = set(minutes)
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT {_AMENDMENT_SQL} FROM integration_amendment"  # noqa: S608 - only our own column names are put in
                " WHERE instrument_id = ANY(%s) AND trade_ts >= %s AND trade_ts < %s AND state = %s AND bound_seq <= %s",
                [
                    [instrument_id for instrument_id, _ in minutes],
                    min(start for _, start in minutes),
                    max(start for _, start in minutes) + MINUTE,
                    APPLIED,
                    until,
                ],
            )
            found = [msgspec.convert([*row[:-4], row[-4:]], Amendment) for row in cursor.fetchall()]
        return [one for one in found if one.minute in wanted]

    def minute_bars(self, instrument_id: int, source_id: int, start: int, end: int) -> list[Bar]:
        """Give the newest revision of the 1m bars that start in [start, end)."""
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT DISTINCT ON (start) {BAR_SQL} FROM integration_bar WHERE instrument_id = %s AND timeframe = '1m'"  # noqa: S608
                " AND source_id = %s AND start >= %s AND start < %s ORDER BY start, revision DESC",
                [instrument_id, source_id, start, end],
            )
            return [bar_of(row) for row in cursor.fetchall()]

    def _older_named(self, wanted: Sequence[tuple[TradeKey, int]]) -> Iterator[TradeRow]:
        if self._older is None:
            return
        for key, ts in wanted:
            for day in range(ts // DAY, ts // DAY - _OLDER_DAYS, -1):
                mine = [row for row in self._older(key.instrument_id, day * DAY, day * DAY + DAY) if _key(row) == key]
                yield from mine
                if any(row[_TS] <= ts for row in mine):
                    break

    def _numbered(self, rows: Iterable[TradeRow], until: int) -> list[StoredTrade]:
        """Give rows the numbers of their batches, in order of arrival; without those of batches that do not count yet."""
        rows = list(rows)
        if not rows:
            return []
        ids = sorted({row[-1] for row in rows})
        with connection.cursor() as cursor:
            cursor.execute("SELECT id, pub_seq FROM integration_batch WHERE id = ANY(%s)", [ids])
            numbers = dict(cursor.fetchall())
        later = {batch for batch, number in numbers.items() if number is None or number > until}
        rows = [row for row in rows if row[-1] not in later]
        places = _places(rows)

        def arrival(row: TradeRow) -> tuple[int, ...]:
            return numbers.get(row[-1], 0), row[-1], places.get((row[-1], _identity(row)), 0), *_identity(row)

        rows.sort(key=arrival)
        return [StoredTrade._make((*row[:-1], numbers.get(row[-1], 0), at)) for at, row in enumerate(rows)]


_TS: Final = TRADE_COLUMNS.index("ts_event")
_FLAGS: Final = TRADE_COLUMNS.index("flags")
_AMENDMENT_SQL: Final = ", ".join(
    (*Amendment.__struct_fields__[:-1], "source_id", "trade_channel", "trade_session", "trade_sequence")
)


def _key(row: TradeRow) -> TradeKey:
    return TradeKey(row[0], row[1], row[5])


def _identity(row: TradeRow) -> Identity:
    return row[1], row[2], row[3], row[4]


def _trades_between(
    start: int, end: int, column: str, values: Sequence[int], ids: Sequence[int] = ()
) -> list[TradeRow]:
    # Values are put into the text by Django's cursor, so that PostgreSQL leaves out the other slices when it plans.
    more = " AND trade_id = ANY(%s)" if ids else ""
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {_TRADE_SQL} FROM integration_trade WHERE ts_event >= %s AND ts_event < %s"  # noqa: S608
            f" AND {column} = ANY(%s) AND {_IS_NEW}{more}",
            [start, end, list(values), *([list(ids)] if ids else [])],
        )
        return list(cursor.fetchall())


def _named(wanted: Sequence[tuple[TradeKey, int]], start: int, end: int) -> list[TradeRow]:
    keys = {key for key, _ in wanted}
    instruments, ids = sorted({key.instrument_id for key in keys}), sorted({key.trade_id for key in keys})
    return [row for row in _trades_between(start, end, "instrument_id", instruments, ids) if _key(row) in keys]


def _missing(
    wanted: Sequence[tuple[TradeKey, int]], found: Sequence[StoredTrade], *, earlier: bool
) -> list[tuple[TradeKey, int]]:
    """Give what is still looked for: no trade at or before its time, or (not `earlier`) none at all."""
    oldest: dict[TradeKey, int] = {}
    for trade in found:
        oldest[trade.key] = min(trade.ts_event, oldest.get(trade.key, trade.ts_event))
    return [(key, ts) for key, ts in wanted if key not in oldest or (earlier and oldest[key] > ts)]


def _backward(ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Give the times to search, newest first: one slice, then two, four, up to the widest."""
    at, width = len(ranges), 1
    while at > 0:
        first = max(at - width, 0)
        yield ranges[first][0], ranges[at - 1][1]
        at, width = first, min(width * 2, _WIDEST)


def _places(rows: Sequence[TradeRow]) -> dict[tuple[int, Identity], int]:
    """Give the places in their batches of trades of an instrument that share a time with another one of the batch."""
    times = Counter((row[-1], row[0], row[_TS]) for row in rows)
    batches = sorted({batch for (batch, _, _), count in times.items() if count > 1})
    places: dict[tuple[int, Identity], int] = {}
    if not batches:
        return places
    with binary_cursor() as cursor:
        for batch in batches:
            cursor.execute("SELECT payload FROM integration_batch WHERE id = %s", [batch])
            for (payload,) in cursor.fetchall():
                ticks = unpack_payload(payload)
                names = zip(
                    *(getattr(ticks, name).tolist() for name in ("source_id", "channel", "session", "sequence")),
                    strict=True,
                )
                places |= {(batch, identity): at for at, identity in enumerate(names)}
    return places


def lake_trades(instrument_id: int, start: int, end: int) -> Iterator[TradeRow]:
    """Give the trades (action new) of an instrument in [start, end) of days that moved to the lake, whether in it or late in slices."""
    days = [_EPOCH_DAY + timedelta(days=day) for day in range(start // DAY, (end - 1) // DAY + 1)]
    if not LakeDay.objects.filter(table="trade", day__in=days).exists():
        return
    from integration import history  # heavy, and only corrections of old days need it

    for batch in history.stream_ticks("trade", instrument_id, start, end, TRADE_COLUMNS):
        columns = [batch.column(name).to_pylist() for name in TRADE_COLUMNS]
        yield from (row for row in zip(*columns, strict=True) if row[_FLAGS] & (FLAG_CORRECTION | FLAG_CANCEL) == 0)


# -- bars -------------------------------------------------------------------------------------------------------------


def bar_of(row: Sequence[Any]) -> Bar:
    """Read a row of `BAR_COLUMNS`."""
    values = dict(zip(BAR_COLUMNS, row, strict=True))
    return Bar(
        **{
            **values,
            "session_date": (values["session_date"] - _EPOCH_DAY).days,
            "volume": _scaled(values["volume"], 9),
            "turnover": _scaled(values["turnover"], 18),
        }
    )


def _scaled(value: Decimal, places: int) -> int:
    """Give a decimal in units of 10^-places; by its digits, since Decimal's arithmetic rounds to 28 of them."""
    sign, digits, exponent = value.as_tuple()
    return int(Decimal((sign, digits, int(exponent) + places)))
