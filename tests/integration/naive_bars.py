"""Bars the slow and obvious way: keep every trade, judge and compute each bar anew from all of them. What the fold must agree with."""

from collections import defaultdict
from dataclasses import dataclass, field, replace

import numpy as np

from integration.bars import Bar, BarKey
from integration.market.sessions import DAY, TIMEFRAMES, SessionTable
from integration.market.ticks import (
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


def batch(rows: list[Row]) -> Ticks:
    """Put rows into columns."""
    ticks = Ticks.zeros(len(rows))
    for name in Row.__dataclass_fields__:
        getattr(ticks, name)[:] = [getattr(row, name) for row in rows]
    return ticks


@dataclass
class Interval:
    """One bar: all its trades in order of arrival, and what was said of it so far."""

    start: int
    end: int
    day_start: int
    day_end: int
    session_date: int
    trades: list[Row] = field(default_factory=list)
    since: list[Row] = field(default_factory=list)
    revision: int = 0
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

    def fold(self, rows: list[Row], clock: int, partition: int) -> list[Bar]:
        published = min((row.ts_publish for row in rows), default=0)
        self.heard_from.setdefault(partition, min(published, clock) if published > 0 else clock)
        touched: dict[BarKey, list[Row]] = defaultdict(list)
        for row in rows:
            nothing = row.conditions & OFF_MARKET_CONDITIONS and row.conditions & NO_VOLUME_CONDITIONS
            if row.kind == TRADE and row.action == NEW and not nothing:
                for source in {max(row.source_id, 0), 0}:
                    for timeframe in TIMEFRAMES:
                        touched[self.interval(row, source, timeframe)].append(row)
        before = {key[:2]: self.known(key[:2], default=partition) for key in touched}
        self.clocks[partition] = max(self.clocks.get(partition, NEVER), clock)
        out: list[Bar] = []
        for key, trades in touched.items():
            bar, owner = self.intervals[key], key[:2]
            self.members[owner].add(partition)
            self.newest[owner] = max(self.newest[owner], *(row.ts_event for row in trades))
            self.floor[owner] = max(self.floor[owner], before[owner])
            joined = max(self.heard_from[member] for member in self.members[owner])
            bar.is_partial |= (bar.day_start if key.timeframe == "1d" else bar.start) < joined
            bar.trades += trades
            bar.since += trades
            if self.over(key) + self.grace <= before[owner]:
                bar.closed = True
                out.append(
                    self.publish(key, "release" if any(row.flags & FLAG_RELEASED for row in trades) else "late_trade")
                )
        for key, bar in self.intervals.items():
            if not bar.closed:
                out += self.due(key, bar)
        # A late bar is final by what is known at the end of the batch.
        return sorted(
            (self.finished(bar) for bar in out),
            key=lambda bar: (bar.end, TIMEFRAMES.index(bar.timeframe), bar.start, *bar.key),
        )

    def due(self, key: BarKey, bar: Interval) -> list[Bar]:
        known = self.known(key[:2])
        self.floor[key[:2]] = known
        changed = any(row.conditions & OFF_MARKET_CONDITIONS == 0 or row.ts_event < bar.end for row in bar.since)
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
        return "release" if any(row.flags & FLAG_RELEASED for row in bar.since) else "late_trade"

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
        prices = [row for row in bar.trades if row.conditions & OFF_MARKET_CONDITIONS == 0]
        return sorted(prices, key=lambda row: row.ts_event)  # stable: equal times stay in order of arrival

    def publish(self, key: BarKey, reason: str) -> Bar:
        bar = self.intervals[key]
        prices = self.priced(bar)
        sized = [row for row in bar.trades if row.conditions & NO_VOLUME_CONDITIONS == 0]
        bar.since = []
        if prices:
            bar.revision += 1
            bar.reason = reason
        return Bar(
            *key,
            end=bar.end,
            session_date=bar.session_date,
            open=prices[0].price if prices else 0,
            high=max((row.price for row in prices), default=0),
            low=min((row.price for row in prices), default=0),
            close=prices[-1].price if prices else 0,
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
