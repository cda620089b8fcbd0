"""Corrections and cancels: which trade each one means, and what counts of that trade after all of them. Pure; stored rows come through `Records`.

Rules (docs/events.md has them for producers):

- A correction or cancel (an *amendment*) names a trade by instrument, source and trade id. It means the trade with that id that the venue dated
  last at or before the amendment's own `ts_event`, else the first one after it; only trades of this batch or earlier ones are looked at.
- With no such trade it *waits*, and means the first one that comes. It is bound once and for good.
- Amendments of one trade apply in order of arrival. A correction replaces price, size and conditions; the trade keeps its time and its
  place among others of the same time. A cancel is final: what comes after it changes nothing.
- A trade that counted nowhere and is corrected into one that counts arrives with its correction.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from integration.bars import CANCEL as CANCELLED
from integration.bars import CORRECTION, Amended, Bar, Touched
from integration.market.sessions import MINUTE
from integration.market.ticks import CANCEL, NEW, NO_VOLUME_CONDITIONS, OFF_MARKET_CONDITIONS, TRADE, Ticks

WAITING: Final = "waiting"
APPLIED: Final = "applied"
INCOMPLETE: Final = "incomplete"
# Behind every row of a batch: where a trade stands that counts only since a later batch corrected it.
_AFTER_ROWS: Final = 2**40

Identity = tuple[int, int, int, int]
Minute = tuple[int, int]


class TradeKey(NamedTuple):
    """What an amendment names."""

    instrument_id: int
    source_id: int
    trade_id: int


class StoredTrade(NamedTuple):
    """A trade as it arrived, or what amendments have made of it; (`pub_seq`, `row`) is its place in order of arrival."""

    instrument_id: int
    source_id: int
    channel: int
    session: int
    sequence: int
    trade_id: int
    ts_event: int
    price: int
    size: int
    conditions: int
    flags: int
    pub_seq: int = 0  # 0: its batch is gone, so that it came before all that are not
    row: int = 0

    @property
    def key(self) -> TradeKey:
        """What an amendment would name it by."""
        return TradeKey(self.instrument_id, self.source_id, self.trade_id)

    @property
    def identity(self) -> Identity:
        """The event's identity."""
        return self.source_id, self.channel, self.session, self.sequence

    @property
    def minute(self) -> Minute:
        """The instrument and the start of the minute."""
        return self.instrument_id, self.ts_event - self.ts_event % MINUTE

    @property
    def sets_price(self) -> bool:
        """Whether open, high, low and close may be its price."""
        return self.conditions & OFF_MARKET_CONDITIONS == 0

    @property
    def counts_volume(self) -> bool:
        """Whether it is in volume, turnover and count."""
        return self.conditions & NO_VOLUME_CONDITIONS == 0

    @property
    def counts(self) -> bool:
        """Whether any number of a bar depends on it."""
        return self.sets_price or self.counts_volume


class Amendment(msgspec.Struct, frozen=True, array_like=True):
    """A correction or cancel as it arrived (`pub_seq`, `row`), and the trade that it means since batch `bound_seq`."""

    instrument_id: int
    source_id: int
    trade_id: int
    channel: int
    session: int
    sequence: int
    action: int
    price: int
    size: int
    conditions: int
    ts_event: int
    pub_seq: int
    row: int
    state: str = WAITING
    bound_seq: int = 0
    trade_ts: int = 0
    trade: Identity = (0, 0, 0, 0)

    @property
    def key(self) -> TradeKey:
        """What it names."""
        return TradeKey(self.instrument_id, self.source_id, self.trade_id)

    @property
    def minute(self) -> Minute:
        """The instrument and the minute of the trade that it means."""
        return self.instrument_id, self.trade_ts - self.trade_ts % MINUTE

    @property
    def arrival(self) -> tuple[int, int]:
        """Its place in order of arrival."""
        return self.pub_seq, self.row


class Records(Protocol):
    """What is stored, as the fold asks for it. `until`: rows of batches with a higher number, or with none yet, do not exist."""

    def candidates(self, wanted: Sequence[tuple[TradeKey, int]], until: int) -> Iterable[StoredTrade]:
        """Give trades (action new) with these keys: of each key at least the one dated last at or before the time given, else the first after it."""
        ...

    def trades(self, minutes: Sequence[Minute], until: int) -> Iterable[StoredTrade]:
        """Give all trades (action new) of these instruments in these minutes, in order of arrival."""
        ...

    def amendments(self, minutes: Sequence[Minute], until: int) -> Iterable[Amendment]:
        """Give the applied amendments of trades of these instruments in these minutes that were bound by then."""
        ...

    def minute_bars(self, instrument_id: int, source_id: int, start: int, end: int) -> Iterable[Bar]:
        """Give the newest stored revision of each 1m bar that starts in [start, end), held ones too."""
        ...


class NoRecords:
    """Nothing is stored: amendments find only trades of the same round."""

    def candidates(self, wanted: Sequence[tuple[TradeKey, int]], until: int) -> list[StoredTrade]:
        """Give none."""
        return []

    def trades(self, minutes: Sequence[Minute], until: int) -> list[StoredTrade]:
        """Give none."""
        return []

    def amendments(self, minutes: Sequence[Minute], until: int) -> list[Amendment]:
        """Give none."""
        return []

    def minute_bars(self, instrument_id: int, source_id: int, start: int, end: int) -> list[Bar]:
        """Give none."""
        return []


def after(trade: StoredTrade, chain: Sequence[Amendment]) -> StoredTrade | None:
    """Give what counts of a trade after its amendments, which come in order of arrival; None when nothing does."""
    now, counted = trade, trade.counts
    for pub_seq, group in groupby(chain, key=lambda amendment: amendment.pub_seq):
        row = 0
        for amendment in group:
            if amendment.action == CANCEL:
                return None
            now = now._replace(price=amendment.price, size=amendment.size, conditions=amendment.conditions)
            row = amendment.row
        if now.counts and not counted and pub_seq > trade.pub_seq:
            now = now._replace(pub_seq=pub_seq, row=_AFTER_ROWS + row)
        counted = now.counts
    return now if counted else None


def meant(candidates: Iterable[StoredTrade], ts_event: int) -> StoredTrade | None:
    """Choose the trade that an amendment of this time means; None when there is none."""
    known = list(candidates)
    before = [trade for trade in known if trade.ts_event <= ts_event]
    return max(before, key=_age) if before else min(known, key=_age, default=None)


def _age(trade: StoredTrade) -> tuple[int, ...]:
    return trade.ts_event, trade.pub_seq, trade.session, trade.sequence


def _differ(one: StoredTrade, other: StoredTrade | None) -> bool:
    return other is None or (one.price, one.size, one.sets_price, one.counts_volume) != (
        other.price, other.size, other.sets_price, other.counts_volume,
    )  # fmt: skip


@dataclass(slots=True)
class Resolved:
    """A batch with its amendments worked in: the ticks to fold, what to rebuild before, and the amendments to store."""

    ticks: Ticks
    amended: Amended | None = None
    amendments: list[Amendment] = field(default_factory=list)


@dataclass(slots=True)
class _Known:
    """The trades of the minutes that a batch amends, before and after."""

    before: list[StoredTrade] = field(default_factory=list)
    after: list[StoredTrade] = field(default_factory=list)
    newly: list[StoredTrade] = field(default_factory=list)
    touched: list[Touched] = field(default_factory=list)

    def add(self, trade: StoredTrade, earlier: list[Amendment], new: list[Amendment]) -> None:
        """Take a trade with the amendments that were known, and those that the batch adds."""
        chain = sorted(earlier + new, key=lambda amendment: amendment.arrival)
        was = after(trade, earlier)
        now = after(trade, chain) if new else was
        if was is None:
            if now is not None:
                self.newly.append(now)
            return
        self.before.append(was)
        if now is not None:
            self.after.append(now)
        if _differ(was, now):
            reason = CANCELLED if any(one.action == CANCEL for one in chain) else CORRECTION
            self.touched.append(Touched(trade.instrument_id, trade.source_id, trade.minute[1], reason))


class Corrections:
    """The amendments' part of the fold's state: those that wait, and the batches since the last `settle`, which no record shows yet."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._waiting: dict[TradeKey, list[Amendment]] = {}
        self._recent: list[tuple[int, Ticks]] = []
        self._unsaved: dict[Identity, Amendment] = {}

    @property
    def waiting(self) -> list[Amendment]:
        """The amendments that wait for their trades, in order of arrival."""
        return sorted((one for chain in self._waiting.values() for one in chain), key=lambda one: one.arrival)

    def restore(self, waiting: Sequence[Amendment]) -> None:
        """Take up the amendments that wait, in place of all that there is."""
        self._waiting, self._recent, self._unsaved = {}, [], {}
        for amendment in waiting:
            self._waiting.setdefault(amendment.key, []).append(amendment)

    def settle(self) -> None:
        """Say that all batches so far are stored: records show them from now on."""
        self._recent.clear()
        self._unsaved.clear()

    def resolve(self, ticks: Ticks, pub_seq: int) -> Resolved:
        """Bind the batch's amendments, and those that waited for its trades. A batch without any costs next to nothing."""
        until = self._recent[0][0] - 1 if self._recent else pub_seq - 1
        concerned = bool(ticks.action.any()) or self._is_awaited(ticks)
        resolved = self._work_in(ticks, pub_seq, until) if concerned else Resolved(ticks)
        self._recent.append((pub_seq, ticks))
        return resolved

    def give_up(self, amendments: Sequence[Amendment], minutes: set[Minute]) -> list[Amendment]:
        """Mark the amendments of minutes whose trades are not all at hand: their bars stay as they are."""
        marked = [
            msgspec.structs.replace(one, state=INCOMPLETE) if one.state == APPLIED and one.minute in minutes else one
            for one in amendments
        ]
        self._unsaved.update((_identity(one), one) for one in marked)
        return marked

    # -- binding ------------------------------------------------------------------------------------------------------

    def _is_awaited(self, ticks: Ticks) -> bool:
        return bool(self._waiting) and bool(np.isin(ticks.trade_id, self._ids(self._waiting)).any())

    @staticmethod
    def _ids(keys: Iterable[TradeKey]) -> npt.NDArray[np.int64]:
        return np.array(sorted({key.trade_id for key in keys}), np.int64)

    def _work_in(self, ticks: Ticks, pub_seq: int, until: int) -> Resolved:
        new = [_amendment(ticks, row, pub_seq) for row in _rows(ticks, ticks.action != NEW)]
        keys = {amendment.key for amendment in new} | self._waiting.keys()
        own = _by_key(_trades(ticks, _rows(ticks, np.isin(ticks.trade_id, self._ids(keys))), pub_seq), keys)
        bound = self._arrived(own, pub_seq)
        bound += self._bind(new, own, until)
        if not new and not bound:
            return Resolved(ticks)
        mine = {trade.identity: trade for trades in own.values() for trade in trades}
        folded = _amend_own(ticks, mine, [one for one in bound if one.trade in mine])
        known = self._rework([one for one in bound if one.trade not in mine], until)
        if known.newly:
            folded = Ticks.concatenate([folded, _as_ticks(known.newly)])
        stored = sorted([*bound, *(one for one in new if one.key in self._waiting)], key=lambda one: one.arrival)
        stored = list({_identity(one): one for one in stored}.values())
        self._unsaved.update((_identity(one), one) for one in stored)
        amended = Amended(_as_ticks(known.before), _as_ticks(known.after), known.touched) if known.touched else None
        return Resolved(folded, amended, stored)

    def _arrived(self, own: dict[TradeKey, list[StoredTrade]], pub_seq: int) -> list[Amendment]:
        """Bind what waited to the first trade of its key in the batch."""
        bound = []
        for key in sorted(own.keys() & self._waiting.keys()):
            bound += [_bound(one, own[key][0], pub_seq) for one in self._waiting.pop(key)]
        return bound

    def _bind(self, new: Sequence[Amendment], own: dict[TradeKey, list[StoredTrade]], until: int) -> list[Amendment]:
        """Bind what the batch brings; what finds no trade waits."""
        if not new:
            return []
        candidates = defaultdict(list, {key: list(trades) for key, trades in own.items()})
        keys = {one.key for one in new}
        for key, trades in _by_key(self._recent_trades(keys), keys).items():
            candidates[key] += trades
        wanted = list(dict.fromkeys((one.key, one.ts_event) for one in new))
        for trade in self._records.candidates(wanted, until):
            candidates[trade.key].append(trade)
        bound = []
        for one in new:
            named = meant(candidates[one.key], one.ts_event)
            if named is None:
                self._waiting.setdefault(one.key, []).append(one)
            else:
                bound.append(_bound(one, named, one.pub_seq))
        return bound

    def _recent_trades(self, keys: set[TradeKey]) -> list[StoredTrade]:
        ids = self._ids(keys)
        return [
            trade
            for pub_seq, ticks in self._recent
            for trade in _trades(ticks, _rows(ticks, np.isin(ticks.trade_id, ids)), pub_seq)
        ]

    # -- earlier trades -----------------------------------------------------------------------------------------------

    def _rework(self, bound: Sequence[Amendment], until: int) -> _Known:
        """Find out what the minutes of earlier trades held, and hold now."""
        known = _Known()
        minutes = sorted({one.minute for one in bound})
        if not minutes:
            return known
        earlier, new = self._chains(minutes, until), _chains(bound)
        for trade in self._trades_of(minutes, until):
            known.add(trade, earlier.get(trade.identity, []), new.get(trade.identity, []))
        for trades in (known.before, known.after, known.newly):
            trades.sort(key=lambda trade: (trade.pub_seq, trade.row))
        return known

    def _chains(self, minutes: Sequence[Minute], until: int) -> dict[Identity, list[Amendment]]:
        """Give the amendments applied before, by trade and in order of arrival."""
        wanted = set(minutes)
        stored = [one for one in self._records.amendments(minutes, until) if _identity(one) not in self._unsaved]
        recent = [one for one in self._unsaved.values() if one.state == APPLIED and one.minute in wanted]
        return _chains(stored + recent)

    def _trades_of(self, minutes: Sequence[Minute], until: int) -> list[StoredTrade]:
        """Give all trades of some minutes before this batch, in order of arrival."""
        found = list(self._records.trades(minutes, until))
        starts: defaultdict[int, list[int]] = defaultdict(list)
        for instrument_id, start in minutes:
            starts[instrument_id].append(start)
        for pub_seq, ticks in self._recent:
            for instrument_id, mine in starts.items():
                inside = (ticks.instrument_id == instrument_id) & np.isin(
                    ticks.ts_event - ticks.ts_event % MINUTE, mine
                )
                found += _trades(ticks, _rows(ticks, inside), pub_seq)
        return found


def _identity(amendment: Amendment) -> Identity:
    return amendment.source_id, amendment.channel, amendment.session, amendment.sequence


def _bound(amendment: Amendment, trade: StoredTrade, pub_seq: int) -> Amendment:
    return msgspec.structs.replace(
        amendment, state=APPLIED, bound_seq=pub_seq, trade_ts=trade.ts_event, trade=trade.identity
    )


def _chains(amendments: Iterable[Amendment]) -> dict[Identity, list[Amendment]]:
    chains: dict[Identity, list[Amendment]] = {}
    for one in sorted(amendments, key=lambda amendment: amendment.arrival):
        chains.setdefault(one.trade, []).append(one)
    return chains


def _rows(ticks: Ticks, chosen: npt.NDArray[np.bool_]) -> list[int]:
    rows: list[int] = np.flatnonzero(chosen & (ticks.kind == TRADE)).tolist()
    return rows


_AMENDMENT_COLUMNS: Final = Amendment.__struct_fields__[:11]


def _amendment(ticks: Ticks, row: int, pub_seq: int) -> Amendment:
    values = [int(getattr(ticks, name)[row]) for name in _AMENDMENT_COLUMNS]
    return msgspec.convert([*values, pub_seq, row], Amendment)


_TRADE_COLUMNS: Final = StoredTrade._fields[:11]


def _trades(ticks: Ticks, rows: Sequence[int], pub_seq: int) -> list[StoredTrade]:
    """Give those of the rows that are trades of their own, not amendments."""
    rows = [row for row in rows if ticks.action[row] == NEW]
    columns = [getattr(ticks, name)[rows].tolist() for name in _TRADE_COLUMNS]
    return [StoredTrade._make((*values, pub_seq, row)) for *values, row in zip(*columns, rows, strict=True)]


def _by_key(trades: Iterable[StoredTrade], keys: Iterable[TradeKey]) -> dict[TradeKey, list[StoredTrade]]:
    wanted, found = set(keys), dict[TradeKey, list[StoredTrade]]()
    for trade in trades:
        if trade.key in wanted:
            found.setdefault(trade.key, []).append(trade)
    return found


def _amend_own(ticks: Ticks, mine: dict[Identity, StoredTrade], bound: Sequence[Amendment]) -> Ticks:
    """Give a batch's ticks as its trades are after amendments that came no later than they did."""
    if not bound:
        return ticks
    amended = ticks.take(np.arange(len(ticks)))
    for identity, chain in _chains(bound).items():
        trade = mine[identity]
        now = after(trade, chain)
        if now is None:
            amended.action[trade.row] = CANCEL  # is stored and published as it came; only bars pass over it
        else:
            amended.price[trade.row], amended.size[trade.row] = now.price, now.size
            amended.conditions[trade.row] = now.conditions
    return amended


def _as_ticks(trades: Sequence[StoredTrade]) -> Ticks:
    ticks = Ticks.zeros(len(trades))
    ticks.kind[:] = TRADE
    if trades:
        for name, values in zip(_TRADE_COLUMNS, zip(*trades, strict=True), strict=False):
            getattr(ticks, name)[:] = values
    return ticks
