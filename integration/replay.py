"""Stored ticks again, in the order in which they were numbered: to a file, or to a topic as form 1 events (docs/events.md).

Reads batches by `pub_seq` and row in them. A batch that retention has taken gives its rows from the tables, in order of batch and identity.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
from django.db import connection

from integration.market.ticks import CANCEL, CONDITIONS, CORRECT, QUOTE, TRADE, UNNUMBERED, Ticks
from integration.market.units import text_from_nanos
from integration.models import Source
from integration.reference import load_reference
from integration.rows import PAYLOAD_COLUMNS, unpack_payload
from integration.storage import binary_cursor

_BATCHES_A_READ: Final = 64
_ACTIONS: Final = {CORRECT: "correct", CANCEL: "cancel"}


@dataclass(frozen=True, slots=True)
class Query:
    """Ticks of instruments (none: all) with start_ns <= ts_event < end_ns."""

    start_ns: int
    end_ns: int
    instrument_ids: tuple[int, ...] = ()


def replayed(query: Query) -> Iterator[Ticks]:
    """Give the numbered ticks of a query in order, in pieces. Reads one batch at a time into memory.

    This is the one place that knows where ticks are kept: days that moved to the lake must be read here too.
    """
    kept, gone = _batches_of(query)
    for batch_id in gone:
        yield _of_tables(query, batch_id)
    for start in range(0, len(kept), _BATCHES_A_READ):
        with binary_cursor() as cursor:
            cursor.execute(
                "SELECT payload FROM integration_batch WHERE id = ANY(%s) ORDER BY pub_seq",
                [kept[start : start + _BATCHES_A_READ]],
            )
            for (payload,) in cursor.fetchall():
                yield _chosen(unpack_payload(payload), query)


def _chosen(ticks: Ticks, query: Query) -> Ticks:
    mask = (ticks.ts_event >= query.start_ns) & (ticks.ts_event < query.end_ns)
    if query.instrument_ids:
        mask &= np.isin(ticks.instrument_id, query.instrument_ids)
    return ticks.take(mask)


def _batches_of(query: Query) -> tuple[list[int], list[int]]:
    """Give the ids of the batches that hold ticks of a query: those that are kept, in order of `pub_seq`, and those that are gone."""
    where, values = _where(query)
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            WITH found AS (SELECT batch_id FROM integration_trade WHERE {where} UNION SELECT batch_id FROM integration_quote WHERE {where})
            SELECT found.batch_id, b.id IS NOT NULL FROM found LEFT JOIN integration_batch b ON b.id = found.batch_id
             WHERE b.id IS NULL OR b.pub_seq IS NOT NULL ORDER BY b.pub_seq, found.batch_id
            """,  # noqa: S608 - only our own words are put in
            [*values, *values],
        )
        found = cursor.fetchall()
    return [pk for pk, is_kept in found if is_kept], [pk for pk, is_kept in found if not is_kept]


def _where(query: Query) -> tuple[str, list[Any]]:
    words, values = "ts_event >= %s AND ts_event < %s", [query.start_ns, query.end_ns]
    if query.instrument_ids:
        return f"{words} AND instrument_id = ANY(%s)", [*values, list(query.instrument_ids)]
    return words, list(values)


_TABLES: Final = {
    "trade": f"{TRADE}, price, size, 0, 0, trade_id",
    "quote": f"{QUOTE}, bid, bid_size, ask, ask_size, 0",
}
_TABLE_COLUMNS: Final = (
    "kind", "price", "size", "ask_price", "ask_size", "trade_id", "action", "instrument_id", "source_id", "channel", "session", "sequence",
    "ts_event", "ts_publish", "conditions", "flags", "session_date",
)  # fmt: skip


def _of_tables(query: Query, batch_id: int) -> Ticks:
    where, values = _where(query)
    # Only our own words are put in.
    parts = [
        f"SELECT {own}, (flags & 12) >> 2, instrument_id, source_id, channel, session, sequence, ts_event, ts_publish, conditions, flags,"  # noqa: S608
        f" session_date - DATE '1970-01-01' FROM integration_{table} WHERE {where} AND batch_id = %s"
        for table, own in _TABLES.items()
    ]
    with connection.cursor() as cursor:
        cursor.execute(f"{' UNION ALL '.join(parts)} ORDER BY 9, 10, 11, 12", [*values, batch_id, *values, batch_id])
        rows = cursor.fetchall()
    ticks = Ticks.zeros(len(rows))
    for name, column in zip(_TABLE_COLUMNS, zip(*rows, strict=True), strict=bool(rows)):
        getattr(ticks, name)[:] = column
    return ticks


# -- what goes out ------------------------------------------------------------------------------------------------------


class EventWriter:
    """Writes stored ticks as form 1 events, with the identity that they came with."""

    def __init__(self) -> None:
        self._codes = dict(Source.objects.values_list("id", "code"))
        self._symbols = {pk: facts.symbol for pk, facts in load_reference().instruments.items()}

    def events(self, ticks: Ticks) -> Iterator[tuple[str, int, bytes]]:
        """Give (instrument text, ts_event, JSON) of each tick, in order."""
        columns = {name: column.tolist() for name, column in ticks.columns()}
        for at in range(len(ticks)):
            row = {name: values[at] for name, values in columns.items()}
            symbol = self._symbols.get(row["instrument_id"], "")
            yield symbol, row["ts_event"], msgspec.json.encode(self._event(row, symbol))

    def _event(self, row: dict[str, int], symbol: str) -> dict[str, Any]:
        meta: dict[str, Any] = {
            "source": self._codes.get(row["source_id"], ""),
            "kind": "trade" if row["kind"] == TRADE else "quote",
        }
        if row["channel"] != UNNUMBERED:
            meta |= {"channel": row["channel"], "session": row["session"], "sequence": row["sequence"]}
        if row["conditions"]:
            meta["conditions"] = [word for bit, word in enumerate(CONDITIONS) if row["conditions"] >> bit & 1]
        if row["trade_id"]:
            meta["trade_id"] = row["trade_id"]
        if row["action"] in _ACTIONS:
            meta["action"] = _ACTIONS[row["action"]]
        price, size = text_from_nanos(row["price"]), text_from_nanos(row["size"])
        is_trade = row["kind"] == TRADE
        prices = {"price": price} if is_trade else {"bid": price, "ask": text_from_nanos(row["ask_price"])}
        sizes = {"size": size} if is_trade else {"bid_size": size, "ask_size": text_from_nanos(row["ask_size"])}
        body = {
            "instrument_id": symbol,
            "timestamp": row["ts_event"],
            "price_data": prices,
            "volume_data": sizes,
            "metadata": meta,
        }
        name = f"replay:{row['source_id']}:{row['channel']}:{row['session']}:{row['sequence']}"
        return {"event_id": name, "timestamp": row["ts_publish"], "market_data": body}


@dataclass
class Pace:
    """Waits as long as passed between two events, divided by `speed`; 0 never waits. Late events do not make it wait longer."""

    speed: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Any] = time.sleep
    _begun: tuple[int, float] | None = None

    def wait(self, ts_event: int) -> None:
        """Wait until an event is due."""
        if not self.speed:
            return
        first, at = self._begun = self._begun or (ts_event, self.clock())
        due = at + (ts_event - first) / 1e9 / self.speed
        if (left := due - self.clock()) > 0:
            self.sleep(left)


def write_jsonl(pieces: Iterator[Ticks], path: Path) -> int:
    """Write one form 1 event a line; returns how many."""
    count, writer = 0, EventWriter()
    with path.open("xb") as file:
        for ticks in pieces:
            for _, _, data in writer.events(ticks):
                file.write(data + b"\n")
                count += 1
    return count


def write_arrow(pieces: Iterator[Ticks], path: Path) -> int:
    """Write an Arrow IPC file of the columns as they are stored (nanos and ns); returns how many rows."""
    zeros = Ticks.zeros(0)
    schema = pa.schema(
        [pa.field(name, pa.from_numpy_dtype(getattr(zeros, name).dtype), nullable=False) for name in PAYLOAD_COLUMNS]
    )
    count = 0
    with path.open("xb") as file, pa.ipc.new_file(file, schema) as writer:
        for ticks in pieces:
            if len(ticks):
                arrays = [pa.array(np.ascontiguousarray(getattr(ticks, name))) for name in PAYLOAD_COLUMNS]
                writer.write_batch(pa.record_batch(arrays, schema=schema))
                count += len(ticks)
    return count


def publish(pieces: Iterator[Ticks], producer: Any, pace: Pace) -> int:
    """Send form 1 events keyed by instrument; returns how many. Raises what the client raises when one could not be sent."""
    count, writer, failed = 0, EventWriter(), []

    def arrived(result: Any, _message_id: Any) -> None:
        if str(result) != "Result.Ok":
            failed.append(result)

    for ticks in pieces:
        for symbol, ts_event, data in writer.events(ticks):
            pace.wait(ts_event)
            producer.send_async(data, arrived, partition_key=symbol)
            count += 1
    producer.flush()
    if failed:
        raise RuntimeError(f"{len(failed)} of {count} events were not taken by the broker, the first with {failed[0]}")
    return count
