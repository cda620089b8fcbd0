"""Bars the slow and obvious way: keep every trade, judge and compute each bar anew from all of them. What the fold must agree with.

Corrections and cancels too: each trade keeps the list of what was said of it, and what counts is worked out from the whole list.
"""

from collections import defaultdict
from dataclasses import dataclass, field, replace

import numpy as np

from integration.bars import Bar, BarKey
from integration.market.sessions import DAY, TIMEFRAMES, SessionTable
from integration.market.ticks import (
    CANCEL,
    FLAG_RELEASED,
    NEW,
    NO_VOLUME_CONDITIONS,
    OFF_MARKET_CONDITIONS,
    TRADE,
    Ticks,
)

NEVER = -(2**63)


@dataclass(frozen=True)
class Row:
    """One trade, as a test states it; times in ns, prices and sizes in nanos."""

    ts_event: int
    price: int
    size: int = 1
    instrument_id: int = 1
    source_id: int = 1
    conditions: int = 0
    flags: int = 0
    kind: int = TRADE
    action: int = NEW
    ts_publish: int = 0
    trade_id: int = 0
    sequence: int = 0

    @property
    def sets_price(self) -> bool:
        return self.conditions & OFF_MARKET_CONDITIONS == 0

    @property
    def counts_volume(self) -> bool:
        return self.conditions & NO_VOLUME_CONDITIONS == 0

    @property
    def counts(self) -> bool:
        return self.kind == TRADE and self.action == NEW and (self.sets_price or self.counts_volume)

    @property
    def key(self) -> tuple[int, int, int]:
        return self.instrument_id, self.source_id, self.trade_id


def batch(rows: list[Row]) -> Ticks:
    """Put rows into columns."""
    ticks = Ticks.zeros(len(rows))
    for name in Row.__dataclass_fields__:
        getattr(ticks, name)[:] = [getattr(row, name) for row in rows]
    return ticks


@dataclass(eq=False)
class Trade:
    """A trade as it arrived, what was said of it since in order of arrival, and what it therefore is now (None: nothing)."""

    arrived: Row
    number: int
    said: list[tuple[int, int, Row]] = field(default_factory=list)
    now: Row | None = None

    def settle(self) -> None:
        now = self.arrived
        for _, _, row in sorted(self.said, key=lambda entry: entry[:2]):
            if row.action == CANCEL:
                self.now = None
                return
            now = replace(now, price=row.price, size=row.size, conditions=row.conditions)
        self.now = now if now.counts else None

    @property
    def row(self) -> Row:
        assert self.now is not None
        return self.now

    @property
    def is_cancelled(self) -> bool:
        return any(row.action == CANCEL for _, _, row in self.said)


def worth(row: Row | None) -> tuple[int, int, bool, bool] | None:
    """What of a trade a bar depends on."""
    return None if row is None else (row.price, row.size, row.sets_price, row.counts_volume)


@dataclass
class Interval:
    """One bar: all its trades in order of arrival, and what was said of it so far."""

    start: int
    end: int
    day_start: int
    day_end: int
    session_date: int
    trades: list[Trade] = field(default_factory=list)
    since: list[Trade] = field(default_factory=list)
    revision: int = 0
    last_price: int = 0
    reason: str = ""
    is_partial: bool = False
    closed: bool = False


@dataclass
class Naive:
    """The rules of `integration.bars`, one after the other, without any state but the trades."""

    tables: dict[int, SessionTable]
    grace: int
    intervals: dict[BarKey, Interval] = field(default_factory=dict)
    newest: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(lambda: NEVER))
    floor: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(lambda: NEVER))
    members: dict[tuple[int, int], set[int]] = field(default_factory=lambda: defaultdict(set))
    clocks: dict[int, int] = field(default_factory=dict)
    heard_from: dict[int, int] = field(default_factory=dict)

    numbers: int = 0
    all_trades: list[Trade] = field(default_factory=list)
    waiting: list[tuple[int, int, Row]] = field(default_factory=list)

    def fold(self, rows: list[Row], clock: int, partition: int) -> list[Bar]:
        published = min((row.ts_publish for row in rows), default=0)
        self.heard_from.setdefault(partition, min(published, clock) if published > 0 else clock)
        arrivals, out = self.amend(rows)
        touched: dict[BarKey, list[Trade]] = defaultdict(list)
        for trade in arrivals:
            for source in {max(trade.row.source_id, 0), 0}:
                for timeframe in TIMEFRAMES:
                    touched[self.interval(trade.row, source, timeframe)].append(trade)
        before = {key[:2]: self.known(key[:2], default=partition) for key in touched}
        self.clocks[partition] = max(self.clocks.get(partition, NEVER), clock)
        for key, trades in touched.items():
            bar, owner = self.intervals[key], key[:2]
            self.members[owner].add(partition)
            self.newest[owner] = max(self.newest[owner], *(trade.row.ts_event for trade in trades))
            self.floor[owner] = max(self.floor[owner], before[owner])
            joined = max(self.heard_from[member] for member in self.members[owner])
            bar.is_partial |= (bar.day_start if key.timeframe == "1d" else bar.start) < joined
            bar.trades += trades
            bar.since += trades
            if self.over(key) + self.grace <= before[owner]:
                bar.closed = True
                out.append(self.publish(key, late(trades)))
        for key, bar in self.intervals.items():
            if not bar.closed:
                out += self.due(key, bar)
        # Of a bar that is held and of which more is said in the same batch, the last word counts.
        last = {bar.key: at for at, bar in enumerate(out)}
        out = [bar for at, bar in enumerate(out) if bar.revision or last[bar.key] == at]
        # A late bar is final by what is known at the end of the batch.
        return sorted(
            (self.finished(bar) for bar in out),
            key=lambda bar: (bar.end, TIMEFRAMES.index(bar.timeframe), bar.start, *bar.key),
        )

    def amend(self, rows: list[Row]) -> tuple[list[Trade], list[Bar]]:
        """Work the batch's corrections and cancels in; give the trades that arrive with it, and the bars that they revised."""
        self.numbers += 1
        earlier = {trade: trade.now for trade in self.all_trades}
        mine = [Trade(row, self.numbers) for row in rows if row.kind == TRADE and row.action == NEW]
        self.all_trades += mine
        self.arrive(mine)
        last: dict[Trade, int] = {}
        for at, row in enumerate(rows):
            if row.kind == TRADE and row.action != NEW and row.trade_id:
                entry = (self.numbers, at, row)
                trade = self.meant(row)
                (trade.said if trade else self.waiting).append(entry)
                if trade:
                    last[trade] = at
        for trade in self.all_trades:
            trade.settle()
        changed = [trade for trade, was in earlier.items() if was is not None and worth(was) != worth(trade.now)]
        newly = sorted((t for t, was in earlier.items() if was is None and t.now), key=lambda trade: last[trade])
        return [trade for trade in mine if trade.now] + newly, self.revised({t: earlier[t] for t in changed})

    def arrive(self, mine: list[Trade]) -> None:
        """Let what waited find the first trade of its name."""
        for entry in list(self.waiting):
            for trade in mine:
                if trade.arrived.key == entry[2].key:
                    trade.said.append(entry)
                    self.waiting.remove(entry)
                    break

    def meant(self, row: Row) -> Trade | None:
        """The trade dated last at or before the amendment, else the first after it; of equal times the one that came last."""
        named = [trade for trade in self.all_trades if trade.arrived.key == row.key]

        def age(trade: Trade) -> tuple[int, int, int]:
            return trade.arrived.ts_event, trade.number, trade.arrived.sequence

        before = [trade for trade in named if trade.arrived.ts_event <= row.ts_event]
        return max(before, key=age) if before else min(named, key=age, default=None)

    def revised(self, changed: dict[Trade, Row | None]) -> list[Bar]:
        """Take changed trades out of their bars, or let them stay with new values; give the bars that were out."""
        reasons: dict[BarKey, str] = {}
        gone = {trade for trade in changed if trade.now is None}
        for trade, was in changed.items():
            assert was is not None
            for source in {max(was.source_id, 0), 0}:
                for timeframe in TIMEFRAMES:
                    key = self.interval(was, source, timeframe)
                    reasons[key] = "cancel" if trade.is_cancelled or reasons.get(key) == "cancel" else "correction"
                    bar = self.intervals[key]
                    priced = sorted(
                        (
                            earlier
                            for earlier in (changed.get(t, t.now) for t in bar.trades)
                            if earlier and earlier.sets_price
                        ),
                        key=lambda row: row.ts_event,
                    )
                    bar.last_price = priced[-1].price if priced else bar.last_price
        out = []
        for key, reason in reasons.items():
            bar = self.intervals[key]
            bar.trades = [trade for trade in bar.trades if trade not in gone]
            bar.since = [trade for trade in bar.since if trade not in gone]
            if bar.closed or bar.revision:
                out.append(self.publish(key, reason))
            elif not bar.trades:
                del self.intervals[key]
        return out

    def due(self, key: BarKey, bar: Interval) -> list[Bar]:
        known = self.known(key[:2])
        self.floor[key[:2]] = known
        changed = any(trade.row.sets_price or trade.row.ts_event < bar.end for trade in bar.since)
        if self.over(key) + self.grace <= known:
            bar.closed = True
            return [self.publish(key, self.why(bar))]
        if bar.end + self.grace <= known and changed and self.priced(bar):
            return [self.publish(key, self.why(bar))]
        return []

    def why(self, bar: Interval) -> str:
        if bar.revision == 0:
            return "first"
        if not bar.since:
            return bar.reason
        return late(bar.since)

    def known(self, owner: tuple[int, int], default: int | None = None) -> int:
        members = self.members[owner] or ({default} if default is not None else set[int]())
        return max(
            self.newest[owner],
            self.floor[owner],
            min(self.clocks.get(member, NEVER) for member in members),
        )

    def over(self, key: BarKey) -> int:
        bar = self.intervals[key]
        return bar.day_end if key.timeframe == "1d" else bar.end

    def interval(self, row: Row, source: int, timeframe: str) -> BarKey:
        table = self.tables[row.instrument_id]
        at = np.array([row.ts_event], np.int64)
        starts, ends = table.bar_starts(at, timeframe)
        key = BarKey(row.instrument_id, source, timeframe, int(starts[0]))
        if key not in self.intervals:
            date = int(table.session_dates(at)[0])
            day_start, day_end = date * DAY, date * DAY + DAY
            if date in table.session_date:
                session = table.session_date.tolist().index(date)
                day_start, day_end = int(table.day_start_ns[session]), int(table.owned_until_ns[session])
            self.intervals[key] = Interval(key.start, int(ends[0]), day_start, day_end, date)
        return key

    def priced(self, bar: Interval) -> list[Row]:
        prices = [trade.row for trade in bar.trades if trade.row.sets_price]
        return sorted(prices, key=lambda row: row.ts_event)  # stable: equal times stay in order of arrival

    def publish(self, key: BarKey, reason: str) -> Bar:
        bar = self.intervals[key]
        prices = self.priced(bar)
        sized = [trade.row for trade in bar.trades if trade.row.counts_volume]
        bar.since = []
        if prices or bar.revision:
            bar.revision += 1
            bar.reason = reason
        gone = bar.last_price if bar.revision else 0  # a bar without a price repeats its last one
        return Bar(
            *key,
            end=bar.end,
            session_date=bar.session_date,
            open=prices[0].price if prices else gone,
            high=max((row.price for row in prices), default=gone),
            low=min((row.price for row in prices), default=gone),
            close=prices[-1].price if prices else gone,
            volume=sum(row.size for row in sized),
            turnover=sum(row.price * row.size for row in sized),
            trade_count=len(sized),
            first_ts=prices[0].ts_event if prices else 0,
            last_ts=prices[-1].ts_event if prices else 0,
            revision=bar.revision,
            reason=reason,
            is_partial=bar.is_partial,
        )

    def finished(self, bar: Bar) -> Bar:
        return replace(bar, is_final=self.intervals[bar.key].day_end + self.grace <= self.known(bar.key[:2]))


def late(trades: list[Trade]) -> str:
    return "release" if any(trade.row.flags & FLAG_RELEASED for trade in trades) else "late_trade"
