"""The hot path, first half, as a pure function: messages of one partition in, one `Outcome` to be stored out.

    decode -> bind sources -> resolve instruments -> identify -> screen          (here)
    -> record in one transaction -> adopt -> acknowledge                         (storage.py, consumer.py)

No Django, no clock, no I/O: time, reference data and the look-up of stored events are arguments. `config.pipeline` fills the slots.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from integration.market import errors
from integration.market.identity import JUMP, KNOWN, NEW, UNSURE, Identities, KnownIdentities
from integration.market.reference import UNKNOWN_INSTRUMENT_ID, Reference
from integration.market.tally import Tally
from integration.market.ticks import (
    FLAG_HALTED,
    FLAG_OFF_SESSION,
    FLAG_RELEASED,
    TRADE,
    UNREADABLE,
    Decoded,
    Decoder,
    DeliveredBar,
    Message,
    Rejection,
    StatusChange,
    Ticks,
)

CONTENT_COLUMNS = (
    "kind", "action", "instrument_id", "ts_event", "price", "size", "ask_price", "ask_size", "conditions", "trade_id",
)  # fmt: skip


class Screened(Protocol):
    """What a screen answers: per tick 0 or 1 + a place in the slot's codes, flags to add, and its state afterwards."""

    codes: npt.NDArray[np.uint8]
    flags: npt.NDArray[np.uint32]
    state: Any


@dataclass(slots=True, frozen=True)
class Slots:
    """What the flow calls but does not import. The screen's state is opaque here; `pack`/`unpack` write and read it."""

    decode: Decoder
    row_bytes: Callable[[Message, int], bytes]
    digest: Callable[[bytes], int]
    screen: Callable[..., Screened]
    screen_codes: Sequence[str]
    screen_detail: Callable[[Ticks, int, str], str]
    new_screen_state: Callable[[], Any]
    pack_screen_state: Callable[[Any], bytes]
    unpack_screen_state: Callable[[bytes], Any]


@dataclass(slots=True, frozen=True)
class StoredTick:
    """The content of a stored trade or quote, in the order of `CONTENT_COLUMNS`."""

    content: tuple[int, ...]


@dataclass(slots=True, frozen=True)
class StoredBytes:
    """The raw bytes of an event that was quarantined, parked, or stored as a status change or delivered bar."""

    raw: bytes


Stored = StoredTick | StoredBytes | None
FindStored = Callable[[Identities], list[Stored]]
# Tells the ticks that no table can be made for.
Route = Callable[[Ticks], npt.NDArray[np.bool_]]


@dataclass(slots=True)
class PartitionState:
    """What a consumer remembers of a partition. A batch never changes it: `adopt` does, after the commit."""

    identities: KnownIdentities
    screen: Any
    statuses: dict[int, tuple[tuple[int, str], ...]] = field(default_factory=dict)  # instrument -> recent (ts, status)
    lanes: set[tuple[str, str]] = field(default_factory=set)  # (source, instrument text) with parked events


@dataclass(slots=True)
class Refused:
    """A rejection made final: the raw bytes of the event, and what names it."""

    rejection: Rejection
    source_id: int
    raw: bytes
    ts_publish: int
    ts_received: int


@dataclass(slots=True)
class SideEvent:
    """A status change or delivered bar that was accepted, with its raw bytes."""

    event: StatusChange | DeliveredBar
    instrument_id: int
    source_id: int
    session_date: int
    raw: bytes


@dataclass(slots=True)
class Outcome:
    """What one batch of messages came to. message count events = ticks + sides + refused + parked + duplicates."""

    ticks: Ticks
    sides: list[SideEvent]
    refused: list[Refused]
    parked: list[Refused]
    duplicate_count: int
    identities: Identities
    screen_state: Any
    clock: int
    message_count: int
    tally: Tally = field(default_factory=Tally)


@dataclass(slots=True, frozen=True)
class Request:
    """One run through the flow. `waived` are codes that an operator has released; lanes are ignored for a release."""

    topic: str
    messages: Sequence[Message]
    reference: Reference
    trust_time: bool = True
    is_release: bool = False
    waived: frozenset[str] = frozenset()


def all_routable(ticks: Ticks) -> npt.NDArray[np.bool_]:
    """Say of every tick that there is a table for it."""
    return np.zeros(len(ticks), np.bool_)


def process(
    request: Request, state: PartitionState, slots: Slots, find_stored: FindStored, route: Route = all_routable
) -> Outcome:
    """Take the messages of one partition, in order, to what must be stored. Changes neither `state` nor the messages.

    Raises nothing for a bad event. Cost grows with the number of columns, not of events, unless events are bad.
    """
    flow = _Flow(request, state, slots, slots.decode(request.messages))
    flow.bind_sources()
    flow.account()
    flow.resolve_instruments()
    flow.identify(find_stored)
    flow.screen()
    flow.route(route)
    return flow.outcome()


def adopt(state: PartitionState, outcome: Outcome) -> None:
    """Make the outcome of a committed transaction part of the state."""
    state.identities.adopt(outcome.identities)
    state.screen = outcome.screen_state
    state.lanes.update((refused.rejection.source, refused.rejection.instrument) for refused in outcome.parked)
    state.statuses = _with_statuses(state.statuses, outcome.sides)


def _with_statuses(
    statuses: dict[int, tuple[tuple[int, str], ...]], sides: Sequence[SideEvent]
) -> dict[int, tuple[tuple[int, str], ...]]:
    after = dict(statuses)
    for side in sides:
        if isinstance(side.event, StatusChange):
            changes = (*after.get(side.instrument_id, ()), (side.event.ts_event, side.event.status))
            after[side.instrument_id] = tuple(sorted(changes))[-16:]
    return after


class _Flow:
    """One batch on its way. Rows that leave `ticks` become a rejection, a parked event or a duplicate, never nothing."""

    def __init__(self, request: Request, state: PartitionState, slots: Slots, decoded: Decoded) -> None:
        self.request, self.state, self.slots = request, state, slots
        self.decoded = decoded
        self.ticks = decoded.ticks
        self.instrument, self.source, self.currency = decoded.instrument, decoded.source, decoded.currency
        self.sides: list[SideEvent] = []
        self.refused = [self._refuse(self._owned(rejection)) for rejection in decoded.rejections]
        self.parked: list[Refused] = []
        self.duplicate_count = 0
        self.screen_state: Any = state.screen
        self.tally = Tally()

    # -- sources ------------------------------------------------------------------------------------------------------

    def bind_sources(self) -> None:
        """Give rows their source id; a claim that this topic does not allow becomes one rejection a message."""
        ids = np.zeros(len(self.decoded.sources) + 1, np.int32)
        for index, code in enumerate(self.decoded.sources):
            ids[index] = 0 if self._source_fault(code) else self.request.reference.sources[code].id
        self.ticks.source_id = ids[self.source]
        stranger = self.ticks.source_id == 0
        if stranger.any():
            rows = np.flatnonzero(stranger)
            _, heads = np.unique(self.ticks.message[rows], return_index=True)
            for at in rows[np.sort(heads)].tolist():
                self._refuse_stranger(int(self.ticks.message[at]), self.decoded.sources[self.source[at]])
            self._keep(~stranger)
        events: list[DeliveredBar | StatusChange] = [*self.decoded.bars, *self.decoded.statuses]
        for event in events:
            if self._source_fault(event.source):
                self._refuse_stranger(event.message, event.source)
            else:
                self.sides.append(
                    SideEvent(
                        event,
                        0,
                        self.request.reference.sources[event.source].id,
                        0,
                        bytes(self.request.messages[event.message].data),
                    )
                )

    def _source_fault(self, code: str) -> str:
        facts = self.request.reference.sources.get(code)
        if facts is None or not facts.is_active:
            return errors.SOURCE_UNKNOWN
        return "" if self.request.topic in facts.topics else errors.SOURCE_NOT_BOUND

    def _refuse_stranger(self, message: int, code: str) -> None:
        # Known by its bytes: a stranger must not be able to use up the identities of the source it claims to be.
        fault = self._source_fault(code)
        words = (
            "is not registered or not active"
            if fault == errors.SOURCE_UNKNOWN
            else f"may not publish on {self.request.topic}"
        )
        self._refuse_bytes(Rejection(message, fault, f"source {words}, was {code!r}", source=code))

    def account(self) -> None:
        """Count what came, before anything else is decided about it; a message that gave no event at all would be lost here."""
        self.tally.receive(self._identities())
        came = np.zeros(len(self.request.messages), np.bool_)
        came[self.ticks.message] = True
        came[[side.event.message for side in self.sides]] = True
        came[[item.rejection.message for item in self.refused]] = True
        if not came.all():
            raise ValueError(f"the decoder gave no event for message {int(np.argmin(came))} of {len(came)}")

    # -- instruments --------------------------------------------------------------------------------------------------

    def resolve_instruments(self) -> None:
        """Give rows their instrument, trading day and off-session flag; park what no alias covers."""
        reference, ticks = self.request.reference, self.ticks
        ticks.instrument_id = reference.resolve_column(self.decoded.instruments, self.instrument, ticks.ts_event)
        unknown = ticks.instrument_id == UNKNOWN_INSTRUMENT_ID
        if self.state.lanes and not self.request.is_release:
            unknown |= self._waits_in_lane()
        self._leave(np.flatnonzero(unknown), errors.UNKNOWN_INSTRUMENT, self._parked_detail, self.parked)
        ticks = self.ticks
        ticks.session_date, is_open = reference.session_dates(ticks.instrument_id, ticks.ts_event)
        ticks.flags |= np.where(is_open, 0, FLAG_OFF_SESSION).astype(np.uint32)
        if self.request.is_release:
            ticks.flags |= np.uint32(FLAG_RELEASED)
        self._check_currencies()
        self._resolve_sides()

    def _waits_in_lane(self) -> npt.NDArray[np.bool_]:
        texts = {text: index for index, text in enumerate(self.decoded.instruments)}
        codes = {code: index for index, code in enumerate(self.decoded.sources)}
        waiting = np.zeros(len(self.ticks), np.bool_)
        for source, text in self.state.lanes:
            if text in texts and source in codes:
                waiting |= (self.instrument == texts[text]) & (self.source == codes[source])
        return waiting

    def _parked_detail(self, at: int) -> str:
        return f"no alias covers it at this time, was {self.decoded.instruments[self.instrument[at]]!r}"

    def _check_currencies(self) -> None:
        if not any(self.decoded.currencies):
            return
        pairs = self.ticks.instrument_id.astype(np.int64) * len(self.decoded.currencies) + self.currency
        for pair in np.unique(pairs).tolist():
            instrument_id, index = divmod(pair, len(self.decoded.currencies))
            currency = self.decoded.currencies[index]
            if currency and currency not in self.request.reference.instruments[instrument_id].currencies:
                here = (self.ticks.instrument_id == instrument_id) & (self.currency == index)
                self._leave(np.flatnonzero(here), errors.CURRENCY, self._currency_detail, self.refused)

    def _currency_detail(self, at: int) -> str:
        return f"not the listing's currency, was {self.decoded.currencies[self.currency[at]]!r}"

    def _resolve_sides(self) -> None:
        reference, kept = self.request.reference, []
        for side in self.sides:
            event = side.event
            ts = event.start if isinstance(event, DeliveredBar) else event.ts_event
            side.instrument_id = reference.resolve(event.instrument, ts)
            lane = (event.source, event.instrument)
            if side.instrument_id == UNKNOWN_INSTRUMENT_ID or (
                lane in self.state.lanes and not self.request.is_release
            ):
                text = f"no alias covers it at this time, was {event.instrument!r}"
                self.parked.append(self._refuse(_side_rejection(event, errors.UNKNOWN_INSTRUMENT, text, ts)))
                continue
            currency = event.currency if isinstance(event, DeliveredBar) else ""
            if currency and currency not in reference.instruments[side.instrument_id].currencies:
                text = f"not the listing's currency, was {currency!r}"
                self.refused.append(self._refuse(_side_rejection(event, errors.CURRENCY, text, ts)))
                continue
            dates, _ = reference.session_dates(np.array([side.instrument_id], np.int32), np.array([ts], np.int64))
            side.session_date = int(dates[0])
            kept.append(side)
        self.sides = kept

    # -- identity -----------------------------------------------------------------------------------------------------

    def identify(self, find_stored: FindStored) -> None:
        """Drop repeats, refuse conflicts and jumps. An event that is released finds itself in the quarantine: that is no repeat."""
        events = self._identities()
        limits = {facts.id: facts.sequence_jump_limit for facts in self.request.reference.sources.values()}
        if not self._waives(errors.SEQUENCE_JUMP):
            verdicts, first = self._judge(events, limits)
        else:
            verdicts, first = self._judge(events, {})
        if (verdicts == NEW).all():
            return
        repeats, conflicts = self._compare(events, verdicts, first, find_stored)
        jumps = np.flatnonzero(verdicts == JUMP).tolist()
        made = [
            self._refuse_known(at, errors.CONFLICT, "the same identity came before with other content; the first stays")
            for at in conflicts
        ]
        made += [
            self._refuse_known(at, errors.SEQUENCE_JUMP, "the sequence is further ahead than the source's limit")
            for at in jumps
        ]
        gone = np.zeros(len(events), np.bool_)
        gone[np.array([*repeats, *conflicts, *jumps], np.intp)] = True
        fresh = self._first_of_their_bytes(made, find_stored)
        self.duplicate_count += len(made) - len(fresh)
        self.tally.leave(events, repeats, [*conflicts, *jumps], len(made) - len(fresh))
        self._drop(repeats, fresh, gone)

    def _judge(self, events: Identities, limits: dict[int, int]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.intp]]:
        """Judge in order of arrival: the first of an identity is the first that came, whatever has become of it."""
        if len(events) == len(self.ticks):
            return self.state.identities.judge(events, limits)
        others = [(side.event.message, 0) for side in self.sides]
        others += [(item.rejection.message, max(item.rejection.row, 0)) for item in self.refused + self.parked]
        places = np.array(others, np.int32).reshape(-1, 2)
        order = np.lexsort((np.r_[self.ticks.row, places[:, 1]], np.r_[self.ticks.message, places[:, 0]]))
        judged, first_of = self.state.identities.judge(events.take(order), limits)
        verdicts, first = np.empty_like(judged), np.empty_like(first_of)
        verdicts[order], first[order] = judged, order[first_of]
        return verdicts, first

    def _compare(
        self, events: Identities, verdicts: npt.NDArray[np.uint8], first: npt.NDArray[np.intp], find_stored: FindStored
    ) -> tuple[list[int], list[int]]:
        repeats: list[int] = []
        conflicts: list[int] = []
        outside = np.flatnonzero((first == np.arange(len(events))) & ((verdicts == KNOWN) | (verdicts == UNSURE)))
        before = dict(zip(outside.tolist(), find_stored(events.take(outside)) if len(outside) else [], strict=True))
        for at, stored in before.items():
            is_itself = self.request.is_release and stored == StoredBytes(self._raw_of(at))
            if is_itself or (stored is None and verdicts[at] == UNSURE):
                continue
            (repeats if self._is_repeat(at, stored) else conflicts).append(at)
        inside = np.flatnonzero((first != np.arange(len(events))) & (verdicts == KNOWN))
        for at in inside.tolist():
            head = int(first[at])
            same = self._content(at) == self._content(head) or self._is_repeat(at, before.get(head))
            (repeats if same else conflicts).append(at)
        return repeats, conflicts

    def _is_repeat(self, at: int, stored: Stored) -> bool:
        # A canary is in no table; its identity alone must do.
        is_canary = at < len(self.ticks) and bool(self.request.reference.canary[self.ticks.instrument_id[at]])
        return is_canary if stored is None else self._same(at, stored)

    def _same(self, at: int, stored: StoredTick | StoredBytes) -> bool:
        content = self._content(at)
        if isinstance(stored, StoredTick):
            return content == stored.content
        return self._raw_of(at) == stored.raw

    def _content(self, at: int) -> tuple[int, ...] | bytes:
        """What must be equal in a repeat: the columns of a tick, else the bytes."""
        if at < len(self.ticks):
            content = tuple(int(getattr(self.ticks, name)[at]) for name in CONTENT_COLUMNS)
            # A quote is stored without the trade id that it may carry.
            return content if content[0] == TRADE else (*content[:-1], 0)
        return self._raw_of(at)

    def _raw_of(self, at: int) -> bytes:
        if at < len(self.ticks):
            return self._raw(int(self.ticks.message[at]), int(self.ticks.row[at]))
        at -= len(self.ticks)
        if at < len(self.sides):
            return self.sides[at].raw
        return (self.refused + self.parked)[at - len(self.sides)].raw

    def _identities(self) -> Identities:
        """Name every event of the batch: ticks, then side events, then refused, then parked."""
        ticks = self.ticks
        others = [
            (s.source_id, s.event.channel, s.event.session, s.event.sequence, _time_of(s.event)) for s in self.sides
        ]
        others += [
            (r.source_id, r.rejection.channel, r.rejection.session, r.rejection.sequence, r.rejection.ts_event)
            for r in self.refused + self.parked
        ]
        columns = (ticks.source_id, ticks.channel, ticks.session, ticks.sequence, ticks.ts_event)
        if not others:
            return Identities(*columns)
        extra = np.array(others, np.int64).T
        return Identities(*(np.concatenate((mine, more)) for mine, more in zip(columns, extra, strict=True)))

    def _drop(self, repeats: list[int], made: list[Refused], gone: npt.NDArray[np.bool_]) -> None:
        """Take positions of `_identities` out of their lists; `made` are the refusals that stand for some of them."""
        counts = np.cumsum([len(self.ticks), len(self.sides), len(self.refused), len(self.parked)])
        ticks, sides, refused, parked = np.split(gone, counts[:-1])
        self.duplicate_count += len(repeats)
        self._keep(~ticks)
        self.sides = [side for side, is_gone in zip(self.sides, sides, strict=True) if not is_gone]
        self.refused = [item for item, is_gone in zip(self.refused, refused, strict=True) if not is_gone] + made
        self.parked = [item for item, is_gone in zip(self.parked, parked, strict=True) if not is_gone]

    def _first_of_their_bytes(self, made: list[Refused], find_stored: FindStored) -> list[Refused]:
        """Leave out refusals whose bytes the quarantine has already: a conflict that is delivered again is a duplicate."""
        distinct = list({item.rejection.sequence: item for item in made}.values())
        names = np.array(
            [(0, UNREADABLE, UNREADABLE, item.rejection.sequence, 0) for item in distinct], np.int64
        ).reshape(-1, 5)
        found = find_stored(Identities(*(names[:, column] for column in range(5)))) if distinct else []
        return [item for item, stored in zip(distinct, found, strict=True) if stored != StoredBytes(item.raw)]

    def _refuse_known(self, at: int, code: str, words: str) -> Refused:
        """Refuse an event whose identity is not its own to use: it is known by its bytes instead."""
        sides_at = at - len(self.ticks)
        if sides_at < 0:
            base = self._rejection(at, code, words)
        elif sides_at < len(self.sides):
            event = self.sides[sides_at].event
            base = _side_rejection(event, code, words, _time_of(event))
        else:
            base = (self.refused + self.parked)[sides_at - len(self.sides)].rejection
            words = f"{words}; it was also refused as {base.code}"
        raw = self._raw_of(at)
        return self._refuse(replace(_by_bytes(base, self.slots.digest(raw)), code=code, detail=words), raw)

    # -- screens ------------------------------------------------------------------------------------------------------

    def screen(self) -> None:
        """Judge values by the screens' slot; flag ticks inside a halt."""
        answer = self.slots.screen(
            self.ticks,
            self.request.reference,
            self.state.screen,
            trust_time=self.request.trust_time,
            waived=self.request.waived,
        )
        self.ticks.flags |= answer.flags
        self.screen_state = answer.state
        self._flag_halts()
        bad = np.flatnonzero(answer.codes)
        for number, code in enumerate(self.slots.screen_codes, start=1):
            rows = bad[answer.codes[bad] == number]
            if len(rows):
                self._note(rows, code, self._screen_detail(code), self.refused)
        self._keep(answer.codes == 0)

    def _screen_detail(self, code: str) -> Callable[[int], str]:
        return lambda at: self.slots.screen_detail(self.ticks, at, code)

    def route(self, route: Route) -> None:
        """Refuse ticks that no table can be made for."""
        nowhere = np.flatnonzero(route(self.ticks)) if len(self.ticks) else np.zeros(0, np.intp)
        self._leave(nowhere, errors.UNROUTABLE, lambda _: "no slice can be made for its time", self.refused)

    def _flag_halts(self) -> None:
        statuses = _with_statuses(self.state.statuses, self.sides)
        for instrument_id, changes in statuses.items():
            for (start, status), (end, _) in zip(changes, (*changes[1:], (2**63 - 1, "")), strict=True):
                if status == "halted":
                    inside = (
                        (self.ticks.instrument_id == instrument_id)
                        & (self.ticks.ts_event >= start)
                        & (self.ticks.ts_event < end)
                    )
                    self.ticks.flags[inside] |= np.uint32(FLAG_HALTED)

    def _waives(self, code: str) -> bool:
        return code in self.request.waived

    # -- bookkeeping --------------------------------------------------------------------------------------------------

    def outcome(self) -> Outcome:
        """Put together what must be stored."""
        # The last message's: what was published before it on this partition has been delivered before it.
        published = self.request.messages[-1].ts_publish if self.request.messages else 0
        return Outcome(
            self.ticks, self.sides, self.refused, self.parked, self.duplicate_count, self._identities(), self.screen_state, published,
            len(self.request.messages), self.tally,
        )  # fmt: skip

    def _keep(self, mask: npt.NDArray[np.bool_]) -> None:
        if not mask.all():
            self.ticks = self.ticks.take(mask)
            self.instrument, self.source, self.currency = self.instrument[mask], self.source[mask], self.currency[mask]

    def _leave(self, rows: npt.NDArray[np.intp], code: str, words: Callable[[int], str], into: list[Refused]) -> None:
        """Move rows from the ticks to the refused or parked."""
        if len(rows):
            self._note(rows, code, words, into)
            mask = np.ones(len(self.ticks), np.bool_)
            mask[rows] = False
            self._keep(mask)

    def _note(self, rows: npt.NDArray[np.intp], code: str, words: Callable[[int], str], into: list[Refused]) -> None:
        into.extend(self._refuse(self._rejection(at, code, words(at))) for at in rows.tolist())

    def _rejection(self, at: int, code: str, words: str) -> Rejection:
        ticks = self.ticks
        return Rejection(
            int(ticks.message[at]), code, words, int(ticks.row[at]), self.decoded.sources[self.source[at]], int(ticks.channel[at]),
            int(ticks.session[at]), int(ticks.sequence[at]), self.decoded.instruments[self.instrument[at]], int(ticks.ts_event[at]),
        )  # fmt: skip

    def _refuse_bytes(self, rejection: Rejection) -> None:
        raw = self._raw(rejection.message, rejection.row)
        self.refused.append(self._refuse(_by_bytes(rejection, self.slots.digest(raw)), raw))

    def _owned(self, rejection: Rejection) -> Rejection:
        """Let an unreadable event keep the identity it claims only when its source may use this topic."""
        if rejection.channel == UNREADABLE or not self._source_fault(rejection.source):
            return rejection
        return _by_bytes(rejection, self.slots.digest(self._raw(rejection.message, rejection.row)))

    def _refuse(self, rejection: Rejection, raw: bytes | None = None) -> Refused:
        message = self.request.messages[rejection.message]
        facts = self.request.reference.sources.get(rejection.source)
        # An unreadable event, or one whose claim does not hold, belongs to no source.
        source_id = 0 if facts is None or rejection.channel == UNREADABLE else facts.id
        return Refused(
            rejection, source_id, raw if raw is not None else self._raw(rejection.message, rejection.row), message.ts_publish,
            message.ts_received,
        )  # fmt: skip

    def _raw(self, message: int, row: int) -> bytes:
        data = self.request.messages[message]
        return (
            bytes(data.data)
            if row < 0 or not data.data.startswith(b"\xff\xff\xff\xff")
            else self.slots.row_bytes(data, row)
        )


def _by_bytes(rejection: Rejection, digest: int) -> Rejection:
    return replace(rejection, channel=UNREADABLE, session=UNREADABLE, sequence=digest)


def _side_rejection(event: StatusChange | DeliveredBar, code: str, words: str, ts: int) -> Rejection:
    return Rejection(
        event.message, code, words, -1, event.source, event.channel, event.session, event.sequence, event.instrument, ts
    )


def _time_of(event: StatusChange | DeliveredBar) -> int:
    return event.start if isinstance(event, DeliveredBar) else event.ts_event
