"""Where one event is: received, stored, numbered, published, turned away, released, or not here; read from what is stored anyway.

No write a tick is made for this. What cannot be known is said in `notes`: which later delivery was a repeat, say, is counted
by batch, not by event. Ticks have no index on their identity, so slices are read newest first, within a budget of seconds.
"""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
import numpy as np
from django.contrib.admin.models import LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.db.models import BinaryField, F, Func, IntegerField, Sum, Value

from integration.market.events import decode
from integration.market.identifiers import identity_hash
from integration.market.identity import KNOWN, Identities, KnownIdentities
from integration.market.ticks import CANCEL, CORRECT, UNNUMBERED, UNREADABLE, Decoded, Message, Ticks
from integration.market.times import text_from_ns
from integration.market.units import text_from_nanos
from integration.models import (
    Bar,
    Batch,
    Gap,
    OutgoingMessage,
    Position,
    QuarantinedEvent,
    Slice,
    Source,
    UpstreamEvent,
)
from integration.rows import unpack_payload
from integration.sequencer import TICKS_PER_MESSAGE
from integration.storage import binary_cursor, read_extras

State = QuarantinedEvent.State
BUDGET_S: Final = 20.0
# Claims of an identity that was not the event's to use (conflict, jump, stranger) are known by their bytes: so many are decoded.
_CLAIMS_READ: Final = 5_000
_BY_BYTES: Final = 50
_CLAIMING_CODES: Final = ("conflict", "sequence_jump", "source_not_bound", "duplicate_key", "schema")
_ACTIONS: Final = {0: "new", CORRECT: "correct", CANCEL: "cancel"}

UNKNOWN: Final = "unknown"
KNOWN_ONLY: Final = "known"
MISSING: Final = "missing"
STORED: Final = "stored"
NUMBERED: Final = "numbered"
PUBLISHED: Final = "published"

WORDS: Final[dict[str, str]] = {
    UNKNOWN: "Never seen: it is in no table, and no partition remembers its identity.",
    KNOWN_ONLY: "Its identity was taken, but its row is no longer here: deleted by retention, moved away, or a canary.",
    MISSING: "It never came: its number lies in a gap of its channel.",
    STORED: "Stored, waits for the sequencer.",
    NUMBERED: "Stored and numbered, not yet acknowledged by the broker.",
    PUBLISHED: "Stored, numbered and published.",
    State.QUARANTINED: "Turned away; waits for a decision.",
    State.PARKED: "Parked until an alias names its instrument; flows by itself then.",
    State.RELEASE_REQUESTED: "Its release was requested; its consumer has not carried it out yet.",
    State.RELEASED: "Released from the quarantine.",
    State.CONFIRMED_BAD: "Turned away and confirmed as bad: it never flows.",
}


@dataclass(frozen=True, slots=True)
class EventName:
    """What names an event. `source` is a code, empty for any. `event_id` is kept for what was asked by it."""

    channel: int
    session: int
    sequence: int
    source: str = ""
    event_id: str = ""

    @classmethod
    def of_event_id(cls, event_id: str, source: str = "") -> "EventName":
        """Name an event that its source does not number."""
        return cls(UNNUMBERED, UNNUMBERED, identity_hash(event_id.encode()), source, event_id)

    @property
    def words(self) -> str:
        """Say it for people."""
        if self.event_id:
            return f"event_id {self.event_id!r}"
        if self.channel == UNNUMBERED:
            return f"the event_id with hash {self.sequence}"
        if self.channel == UNREADABLE:
            return f"the bytes with hash {self.sequence}"
        return f"channel {self.channel}, session {self.session}, sequence {self.sequence}"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened. `at` is ns UTC, 0 where no time is kept; `link` is an admin model and key."""

    stage: str
    at: int
    words: str
    facts: dict[str, Any] = field(default_factory=dict)
    link: tuple[str, int] | None = None


@dataclass(slots=True)
class Trace:
    """The answer: `state` is a key of WORDS, `steps` in order of time, `notes` what cannot be known."""

    name: EventName
    state: str = UNKNOWN
    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: int = 0  # stored rows of this identity; more than one would be a defect

    @property
    def words(self) -> str:
        """Say the state in a sentence."""
        return WORDS[self.state]

    def as_dict(self) -> dict[str, Any]:
        """Give plain values for JSON: times as ns and as ISO 8601 text."""
        plain = {"state": self.state, "words": self.words, "name": asdict(self.name), "rows": self.rows}
        steps = [asdict(step) | {"time": text_from_ns(step.at) if step.at else None} for step in self.steps]
        return plain | {"steps": steps, "notes": self.notes}


@dataclass(frozen=True, slots=True)
class _Row:
    """A stored tick as its table holds it."""

    table: str
    source_id: int
    ts_event: int
    ts_publish: int
    instrument_id: int
    batch_id: int
    flags: int
    values: dict[str, str]


def trace(name: EventName, *, around_ns: int = 0, budget_s: float = BUDGET_S) -> Trace:
    """Find an event by its identity. `around_ns` (its `ts_event`, if known) says which slices to read first.

    Costs index look-ups, and a scan of slices for at most `budget_s` seconds; the notes say how far back that went.
    """
    found = Trace(name)
    codes = dict(Source.objects.values_list("id", "code"))
    source_ids = [pk for pk, code in codes.items() if name.source in ("", code)]
    quarantined = _quarantined(name)
    if name.event_id and any(event.channel >= 0 for event in quarantined):
        # Asked by its event_id, though its source numbers it: from here on it goes by its number.
        head = next(event for event in quarantined if event.channel >= 0)
        found.name = name = replace(
            name, channel=head.channel, session=head.session, sequence=head.sequence, source=head.source
        )
        source_ids = [pk for pk, code in codes.items() if code == head.source]
    for event in quarantined:
        found.steps += _quarantine_steps(event)
    _add_upstream(found, source_ids, codes)
    rows = _rows_of(found, quarantined, source_ids, around_ns, budget_s)
    found.rows += len(rows)
    for row in rows:
        _add_row(found, row, codes)
    if quarantined and not rows and found.state == UNKNOWN:
        found.state = quarantined[-1].state
    if name.source:
        found.steps += [step for event in _claims(name) for step in _claim_steps(event)]
    if found.state == UNKNOWN:
        _explain_absence(found, source_ids)
    _note_what_is_not_kept(found)
    found.steps.sort(key=lambda step: step.at or 2**63)
    return found


# -- the quarantine -----------------------------------------------------------------------------------------------------


def _quarantined(name: EventName) -> list[QuarantinedEvent]:
    """Give the events turned away under this identity; by event_id also numbered ones, among the newest, by their bytes."""
    rows = QuarantinedEvent.objects.filter(channel=name.channel, session=name.session, sequence=name.sequence)
    if name.source:
        rows = rows.filter(source=name.source)
    found = list(rows.select_related("position").order_by("id"))
    if name.event_id and not found:
        newest = QuarantinedEvent.objects.order_by("-id").values("id")[:_CLAIMS_READ]
        text = Value(json.dumps(name.event_id, ensure_ascii=False).encode(), BinaryField())
        place = Func(
            text, F("raw"), template="position(%(expressions)s)", arg_joiner=" in ", output_field=IntegerField()
        )
        by_bytes = QuarantinedEvent.objects.filter(pk__in=newest).annotate(place=place).filter(place__gt=0)
        found = list(by_bytes.select_related("position").order_by("id")[:_BY_BYTES])
    return found


def _quarantine_steps(event: QuarantinedEvent) -> Iterator[Step]:
    link = ("quarantinedevent", event.pk)
    place = {"batch": event.batch_id, "partition": event.position.partition, "source": event.source or None}
    times = {"ts_event": event.ts_event or None, "ts_publish": event.ts_publish, "ts_received": event.ts_received}
    facts = place | times | {"code": event.code, "detail": event.detail, "bytes": len(event.raw)}
    stage = "parked" if event.code == "unknown_instrument" else "quarantined"
    words = f"{event.code}: {event.detail}"
    yield Step("received", event.ts_received, f"Received on {event.position.partition}.", {}, None)
    yield Step(stage, _ns(event.created_at), words, facts, link)
    for entry in _decisions(event):
        yield Step("decided", _ns(entry.action_time), f"{entry.user.get_username()}: {entry.get_change_message()}")
    if event.state in (State.RELEASE_REQUESTED, State.CONFIRMED_BAD):
        note = f" “{event.note}”" if event.note else ""
        yield Step(event.state, _ns(event.updated_at), f"{State(event.state).label}.{note}", {}, link)
    if event.state == State.RELEASED:
        by = {"batch": event.released_batch_id}
        yield Step("released", _ns(event.updated_at), f"Released in batch {event.released_batch_id}.", by, link)


def _decisions(event: QuarantinedEvent) -> list[LogEntry]:
    """Give who decided about this event, and the decisions about many at once that were taken while it waited."""
    kind = ContentType.objects.get_for_model(QuarantinedEvent)
    entries = LogEntry.objects.filter(content_type=kind).select_related("user").order_by("action_time")
    many = entries.filter(
        object_id=None,
        action_time__gte=event.created_at,
        action_time__lte=event.updated_at + timedelta(seconds=1),
    )
    return [*entries.filter(object_id=str(event.pk)), *many]


def _claims(name: EventName) -> list[QuarantinedEvent]:
    """Give events that claimed this identity and were refused it: they are known by their bytes, which are decoded here."""
    rows = QuarantinedEvent.objects.filter(source=name.source, channel=UNREADABLE, code__in=_CLAIMING_CODES)
    newest = list(rows.select_related("position").order_by("-id")[:_CLAIMS_READ])
    wanted = (name.channel, name.session, name.sequence)
    # One by one, so that what is read of one never depends on another.
    return [event for event in reversed(newest) if wanted in _names_in(bytes(event.raw))]


def _names_in(raw: bytes) -> list[tuple[int, int, int]]:
    decoded: Decoded = decode([Message(raw, 0, 0)])
    ticks = decoded.ticks
    names = list(zip(ticks.channel.tolist(), ticks.session.tolist(), ticks.sequence.tolist(), strict=True))
    others: list[Any] = [*decoded.bars, *decoded.statuses, *decoded.rejections]
    return names + [(item.channel, item.session, item.sequence) for item in others]


def _claim_steps(event: QuarantinedEvent) -> Iterator[Step]:
    words = "Another event claimed this identity and was refused"
    facts = {"batch": event.batch_id, "code": event.code, "detail": event.detail, "ts_publish": event.ts_publish}
    link = ("quarantinedevent", event.pk)
    yield Step(event.code, _ns(event.created_at), f"{words}: {event.code}, {event.detail}", facts, link)


# -- stored events ------------------------------------------------------------------------------------------------------


def _add_upstream(found: Trace, source_ids: list[int], codes: dict[int, str]) -> None:
    """Add status changes and delivered bars of this identity."""
    name = found.name
    events = UpstreamEvent.objects.filter(
        channel=name.channel, session=name.session, sequence=name.sequence, source_id__in=source_ids
    )
    for event in events.order_by("id"):
        found.rows += 1
        facts = {
            "table": "integration_upstreamevent", "batch": event.batch_id, "instrument": event.instrument_id,
            "source": codes[event.source_id], "ts_event": event.ts_event,
        }  # fmt: skip
        batch = _batch(event.batch_id)
        at = batch.ts_processed if batch else 0
        words = f"Stored as a status change or delivered bar in batch {event.batch_id}."
        found.steps.append(Step("stored", at, words, facts, ("batch", event.batch_id) if batch else None))
        found.state = STORED
        if batch:
            _add_batch(found, batch)


def _rows_of(
    found: Trace, quarantined: list[QuarantinedEvent], source_ids: list[int], around_ns: int, budget_s: float
) -> list[_Row]:
    """Find the stored ticks of an identity: where a released event says, else slice by slice."""
    if found.name.channel == UNREADABLE or (found.rows and not around_ns):
        return []
    name = found.name
    hints = [around_ns] if around_ns else [event.ts_event for event in quarantined if event.ts_event > 0]
    started = time.monotonic()
    pieces = _ordered_slices(hints, name.session)
    for searched, piece in enumerate(pieces):
        if time.monotonic() - started > budget_s:
            done = f"{searched} of {len(pieces)} slices"
            found.notes.append(
                f"Only {done} were searched in {budget_s:.0f} s: give the time of the event to search there first."
            )
            return []
        rows = _rows_in(piece, name, source_ids)
        if rows:
            return rows
    return []


def _ordered_slices(hints: list[int], session: int) -> list[Slice]:
    """Give all slices: those that a hint lies in, then those of the day that the session may name, then newest first."""
    day = _day_of_session(session)

    def rank(piece: Slice) -> tuple[int, int]:
        if any(piece.start <= hint < piece.end for hint in hints):
            return 0, -piece.start
        is_of_day = piece.end > day[0] and piece.start < day[1]
        return (1 if is_of_day else 2), -piece.start

    return sorted(Slice.objects.all(), key=rank)


def _day_of_session(session: int) -> tuple[int, int]:
    """Give the UTC day (ns) of a session such as 20260105, a day wider on both sides; no time at all for other numbers."""
    try:
        day = datetime.strptime(str(session), "%Y%m%d").replace(tzinfo=UTC)
    except ValueError:
        return 0, 0
    return _ns(day - timedelta(days=1)), _ns(day + timedelta(days=2))


_VALUES: Final = {
    "trade": ("price", "size", "trade_id"),
    "quote": ("bid", "bid_size", "ask", "ask_size"),
}


def _rows_in(piece: Slice, name: EventName, source_ids: list[int]) -> list[_Row]:
    values = _VALUES[piece.table]
    with connection.cursor() as cursor:
        cursor.execute(
            # only our own table and column names are put in
            f"""
            SELECT source_id, ts_event, ts_publish, instrument_id, batch_id, flags, {", ".join(values)} FROM integration_{piece.table}
             WHERE ts_event >= %s AND ts_event < %s AND sequence = %s AND channel = %s AND session = %s AND source_id = ANY(%s)
            """,  # noqa: S608
            [piece.start, piece.end, name.sequence, name.channel, name.session, source_ids],
        )
        return [
            _Row(piece.table, row[0], row[1], row[2], row[3], row[4], row[5], _value_texts(values, row[6:]))
            for row in cursor.fetchall()
        ]


def _value_texts(names: tuple[str, ...], values: Iterable[int]) -> dict[str, str]:
    return {
        name: str(value) if name == "trade_id" else text_from_nanos(value)
        for name, value in zip(names, values, strict=True)
    }


def _add_row(found: Trace, row: _Row, codes: dict[int, str]) -> None:
    batch = _batch(row.batch_id)
    facts = {
        "table": f"integration_{row.table}", "batch": row.batch_id, "instrument": row.instrument_id, "source": codes.get(row.source_id, ""),
        "action": _ACTIONS[(row.flags & 12) >> 2], "flags": row.flags, "ts_event": row.ts_event, "ts_publish": row.ts_publish, **row.values,
    }  # fmt: skip
    found.name = replace(found.name, source=codes.get(row.source_id, found.name.source))
    found.state = STORED
    if batch is None:
        found.state = PUBLISHED
        found.steps.append(Step("stored", 0, f"Stored in batch {row.batch_id}.", facts))
        found.notes.append(
            f"Batch {row.batch_id} was deleted by retention, which takes only what was numbered and published; its times are gone with it."
        )
        return
    at = _place_in(batch, found.name, row.source_id)
    facts |= {"row_in_batch": at, "partition": batch.position.partition, "batch_number": batch.number}
    found.steps.append(
        Step("received", batch.ts_received, f"Received on {batch.position.partition} (time of its batch).")
    )
    words = f"Stored in batch {row.batch_id}, row {at}: first of its identity here."
    found.steps.append(Step("stored", batch.ts_processed, words, facts, ("batch", row.batch_id)))
    _add_batch(found, batch, at, row.instrument_id)
    _add_bars(found, row)


def _batch(batch_id: int) -> Batch | None:
    return Batch.objects.select_related("position").defer("payload", "extras").filter(pk=batch_id).first()


def _payload(batch_id: int) -> Ticks:
    with binary_cursor() as cursor:
        cursor.execute("SELECT payload FROM integration_batch WHERE id = %s", [batch_id])
        row = cursor.fetchone()
    return unpack_payload(row[0]) if row else Ticks.zeros(0)


def _place_in(batch: Batch, name: EventName, source_id: int) -> int | None:
    ticks = _payload(batch.pk)
    mine = (ticks.sequence == name.sequence) & (ticks.channel == name.channel) & (ticks.session == name.session)
    rows = np.flatnonzero(mine & (ticks.source_id == source_id))
    return int(rows[0]) if len(rows) else None


# -- the way out --------------------------------------------------------------------------------------------------------


def _add_batch(found: Trace, batch: Batch, at: int | None = None, instrument_id: int = 0) -> None:
    """Add what came of the batch: its number, the event's number in its instrument's stream, and the message it went out with."""
    pub_seq = batch.pub_seq
    if pub_seq is None:
        return
    message, head = _message_of(batch, at)
    facts: dict[str, Any] = {"pub_seq": pub_seq}
    if message is not None and at is not None:
        start, first = head
        before = _payload(batch.pk).instrument_id[start:at]
        facts |= {"epoch": message.epoch, "instrument": instrument_id}
        facts["sequence"] = first[instrument_id] + int((before == instrument_id).sum())
    made_at = _ns(message.created_at) if message else 0
    number = f", number {facts['sequence']} of its instrument in epoch {facts['epoch']}" if "sequence" in facts else ""
    found.steps.append(Step("numbered", made_at, f"Numbered: pub_seq {pub_seq}{number}.", facts))
    found.state = NUMBERED
    if message is None:
        is_out = not OutgoingMessage.objects.filter(pub_seq=pub_seq, sent_at=None).exists()
        found.state = PUBLISHED if is_out else NUMBERED
        found.notes.append(
            "Its outgoing message was deleted by retention, which takes only sent ones."
            if at is not None
            else "A status change has no message of its own on the way out; a delivered bar goes out as a bar of its instrument."
        )
    elif message.sent_at is not None:
        found.state = PUBLISHED
        facts = {"topic": message.topic, "number": message.number, "epoch": message.epoch}
        words = f"Published on {message.topic} as message {message.number}."
        found.steps.append(Step("published", _ns(message.sent_at), words, facts, ("outgoingmessage", message.pk)))


def _message_of(batch: Batch, at: int | None) -> tuple[OutgoingMessage | None, tuple[int, dict[int, int]]]:
    """Give the tick message of a batch that holds row `at`, where it starts, and each instrument's first number in it."""
    if at is None:
        return None, (0, {})
    for message in OutgoingMessage.objects.filter(pub_seq=batch.pub_seq or 0, key="").order_by("number"):
        numbers = _head_of(bytes(message.payload))
        if numbers is not None and numbers[0] <= at < numbers[0] + TICKS_PER_MESSAGE:
            return message, numbers
    return None, (0, {})


def _head_of(payload: bytes) -> tuple[int, dict[int, int]] | None:
    """Read the head of a tick message: [start, instruments…, first numbers…]; other messages are JSON."""
    if payload.startswith(b"{") or len(payload) % 16 != 8:
        return None
    numbers = np.frombuffer(payload, "<i8")
    present, first = numbers[1:].reshape(2, -1)
    return int(numbers[0]), dict(zip(present.tolist(), first.tolist(), strict=True))


def _add_bars(found: Trace, row: _Row) -> None:
    """Add the newest revision of each bar whose time covers a trade."""
    if row.table != "trade":
        return
    covering = Bar.objects.filter(
        instrument_id=row.instrument_id, source_id=0, start__lte=row.ts_event, end__gt=row.ts_event, revision__gt=0
    )
    newest = {bar.timeframe: bar for bar in covering.order_by("revision")}
    if newest:
        facts = {
            timeframe: f"revision {bar.revision} ({bar.reason}), pub_seq {bar.pub_seq}"
            for timeframe, bar in newest.items()
        }
        found.steps.append(Step("bars", 0, "Lies in the time of these bars.", facts))


# -- what is not here ---------------------------------------------------------------------------------------------------


def _explain_absence(found: Trace, source_ids: list[int]) -> None:
    """Say why there is no row: a gap, a row that is gone, or nothing was ever seen."""
    name = found.name
    holes = Gap.objects.filter(
        source_id__in=source_ids,
        channel=name.channel,
        session=name.session,
        first__lte=name.sequence,
        last__gte=name.sequence,
    )
    for hole in holes.exclude(state=Gap.State.FILLED).order_by("id"):
        found.state = MISSING
        facts = {"first": hole.first, "last": hole.last, "state": hole.state}
        found.steps.append(Step("gap", _ns(hole.detected_at), "Its number was found missing.", facts, ("gap", hole.pk)))
        if hole.closed_at:
            found.steps.append(
                Step("lost", _ns(hole.closed_at), "Confirmed as lost at its source.", {}, ("gap", hole.pk))
            )
    knowing = [position.partition for position in Position.objects.order_by("id") if _knows(position, name, source_ids)]
    if knowing:
        found.state = KNOWN_ONLY
        found.steps.append(Step("known", 0, f"Its identity is taken on {', '.join(knowing)}.", {"partitions": knowing}))


class _SnapshotIdentities(msgspec.Struct):
    """The part of a position's snapshot that says which identities it knows."""

    identities: bytes


def known_identities(position: Position) -> KnownIdentities:
    """Give the identities that a partition knows: its snapshot, then the batches since."""
    known = KnownIdentities()
    if position.snapshot:
        packed = msgspec.msgpack.decode(bytes(position.snapshot), type=_SnapshotIdentities)
        known = KnownIdentities.load(packed.identities)
    with binary_cursor() as cursor:
        cursor.execute(
            "SELECT payload, extras FROM integration_batch WHERE position_id = %s AND number > %s ORDER BY number",
            [position.pk, position.snapshot_number],
        )
        for payload, extras in cursor:
            ticks, others = unpack_payload(payload), np.array(read_extras(extras).identities, np.int64).reshape(-1, 5)
            known.adopt(Identities(ticks.source_id, ticks.channel, ticks.session, ticks.sequence, ticks.ts_event))
            known.adopt(Identities(*(others[:, column] for column in range(5))))
    return known


def _knows(position: Position, name: EventName, source_ids: list[int]) -> bool:
    # Bytes belong to no source.
    asked = np.array([(pk, name.channel, name.session, name.sequence, 0) for pk in [0, *source_ids]], np.int64).T
    verdicts, _ = known_identities(position).judge(Identities(*asked), {})
    return bool((verdicts == KNOWN).any())


def _note_what_is_not_kept(found: Trace) -> None:
    if found.name.event_id and found.state == UNKNOWN:
        found.notes.append(
            "The event_id of an event that its source numbers is kept only in the bytes of the quarantine:"
            " ask by source, channel, session and sequence."
        )
    stored = next((step for step in found.steps if step.stage == "stored" and step.link), None)
    if stored is None:
        return
    batch = _batch(int(stored.facts["batch"]))
    if batch is None:
        return
    later = Batch.objects.filter(position_id=batch.position_id, number__gte=batch.number)
    repeats = later.aggregate(n=Sum("duplicate_count"))["n"] or 0
    found.notes.append(
        f"A repeat of this event leaves no row of its own. Since then this partition has counted {repeats:,} repeats of all its events,"
        f" {batch.duplicate_count:,} of them in the same batch."
    )


def _ns(moment: datetime) -> int:
    """Give a moment in ns UTC; a float of seconds would lose the microseconds."""
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1_000
