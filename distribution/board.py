"""The latest state of every instrument, folded from numbered ticks and bars. Pure: no Django, no clock, no I/O.

A message is first reduced to one `Change` per instrument with array operations (this runs in the reader's thread), so that
what is done per instrument, in the event loop, does not grow with the number of ticks.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from distribution import protocol
from distribution.hub import Hub, LatestChannel, StreamChannel
from integration.market.ticks import NEW, NO_VOLUME_CONDITIONS, OFF_MARKET_CONDITIONS, QUOTE, TRADE
from integration.market.units import text_from_nanos

Column = npt.NDArray[Any]

MINUTE_NS: Final = 60_000_000_000
# An open instrument without a tick for this long is shown as stale: it may be right, but nobody has said so lately.
STALE_AFTER_NS: Final = 60_000_000_000
EVENTS_KEPT: Final = 200
PIPELINE_KEPT: Final = 300
BARS_KEPT: Final = 120
_SERVICE: Final = 0


# The columns of `integrated/ticks` that the board reads (docs/events.md); session_date in days since 1970-01-01.
COLUMNS_READ: Final = (
    "instrument_id", "epoch", "sequence", "kind", "action", "ts_event", "ts_publish", "price", "size", "ask_price", "ask_size",
    "conditions", "flags", "session_date",
)  # fmt: skip


@dataclass(slots=True)
class MinuteBar:
    """A minute that is not closed yet, in nanos; a bar of off-market trades alone has no price and `close` is None."""

    start: int
    open: int | None = None
    high: int | None = None
    low: int | None = None
    close: int | None = None
    volume: int = 0
    trades: int = 0

    def add(self, other: "MinuteBar") -> None:
        """Fold in a later part of the same minute."""
        if other.high is not None and other.low is not None:
            self.open = other.open if self.open is None else self.open
            self.high = other.high if self.high is None else max(self.high, other.high)
            self.low = other.low if self.low is None else min(self.low, other.low)
            self.close = other.close
        self.volume += other.volume
        self.trades += other.trades


@dataclass(slots=True)
class Change:
    """What one message says about one instrument. Prices and sizes in nanos; None: the message does not say."""

    instrument_id: int
    epoch: int
    first: int
    last: int
    count: int
    ts_event: int
    ts_publish: int
    session_date: int
    price: int | None = None
    size: int | None = None
    quote: tuple[int, int, int, int] | None = None
    volume: int = 0
    minutes: list[MinuteBar] = field(default_factory=list)
    trades: "Trades | None" = None


@dataclass(slots=True)
class Trades:
    """The trades of one instrument in one message, as columns."""

    instrument_id: int
    ts_event: Column
    price: Column
    size: Column
    conditions: Column
    flags: Column

    def render(self, first: int) -> list[str]:
        """Write the rows of the `trades` channel, numbered from `first`."""
        columns = (self.ts_event, self.price, self.size, self.conditions, self.flags)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [
            f'[{self.instrument_id},{number},{ts},"{text_from_nanos(price)}","{text_from_nanos(size)}",{conditions},{flags}]'
            for number, (ts, price, size, conditions, flags) in enumerate(rows, first)
        ]


def reduce_ticks(ticks: Mapping[str, Column]) -> list[Change]:
    """Reduce a message (`COLUMNS_READ` by name) to one change per instrument; order inside an instrument is the message's."""
    if len(ticks["instrument_id"]) == 0:
        return []
    order = np.argsort(ticks["instrument_id"], kind="stable")
    columns = {name: ticks[name][order] for name in COLUMNS_READ}
    instruments = columns["instrument_id"]
    starts = np.flatnonzero(np.r_[True, instruments[1:] != instruments[:-1]])
    ends = np.r_[starts[1:], len(instruments)]
    rows = np.arange(len(instruments))
    is_trade = (columns["kind"] == TRADE) & (columns["action"] == NEW)
    is_priced = is_trade & (columns["conditions"] & OFF_MARKET_CONDITIONS == 0)
    last_price = np.maximum.reduceat(np.where(is_priced, rows, -1), starts)
    last_quote = np.maximum.reduceat(np.where(columns["kind"] == QUOTE, rows, -1), starts)
    latest_session = np.maximum.reduceat(columns["session_date"], starts)
    in_session = columns["session_date"] == np.repeat(latest_session, ends - starts)
    counts_volume = is_trade & (columns["conditions"] & NO_VOLUME_CONDITIONS == 0)
    volumes = _exact_sums(np.where(counts_volume & in_session, columns["size"], 0), starts)
    changes = [
        _change(columns, start, end, priced, quoted, session, volume)
        for start, end, priced, quoted, session, volume in zip(
            starts.tolist(),
            ends.tolist(),
            last_price.tolist(),
            last_quote.tolist(),
            latest_session.tolist(),
            volumes,
            strict=True,
        )
    ]
    _add_trades(changes, columns, np.flatnonzero(is_trade), is_priced, counts_volume)
    return changes


def _change(
    columns: Mapping[str, Column], start: int, end: int, priced: int, quoted: int, session: int, volume: int
) -> Change:
    change = Change(
        instrument_id=int(columns["instrument_id"][start]),
        epoch=int(columns["epoch"][start]),
        first=int(columns["sequence"][start]),
        last=int(columns["sequence"][end - 1]),
        count=end - start,
        ts_event=int(columns["ts_event"][end - 1]),
        ts_publish=int(columns["ts_publish"][end - 1]),
        session_date=session,
        volume=volume,
    )
    # reduceat gives the row in the whole message, or -1 when the instrument has none.
    if priced >= 0:
        change.price, change.size = int(columns["price"][priced]), int(columns["size"][priced])
    if quoted >= 0:
        change.quote = tuple(int(columns[name][quoted]) for name in ("price", "size", "ask_price", "ask_size"))  # type: ignore[assignment]
    return change


def _add_trades(
    changes: list[Change], columns: Mapping[str, Column], at: Column, is_priced: Column, counts_volume: Column
) -> None:
    """Give each change its trades and the minutes they build."""
    if len(at) == 0:
        return
    by_instrument = {change.instrument_id: change for change in changes}
    trades = {name: columns[name][at] for name in ("instrument_id", "ts_event", "price", "size", "conditions", "flags")}
    instruments = trades["instrument_id"]
    starts = np.flatnonzero(np.r_[True, instruments[1:] != instruments[:-1]]).tolist()
    for start, end in zip(starts, [*starts[1:], len(instruments)], strict=True):
        part = slice(start, end)
        number = int(instruments[start])
        by_instrument[number].trades = Trades(
            number, *(trades[name][part] for name in ("ts_event", "price", "size", "conditions", "flags"))
        )
    _add_minutes(by_instrument, trades, is_priced[at], counts_volume[at])


def _add_minutes(
    by_instrument: Mapping[int, Change], trades: Mapping[str, Column], priced: Column, counted: Column
) -> None:
    minutes = trades["ts_event"] // MINUTE_NS * MINUTE_NS
    order = np.lexsort((minutes, trades["instrument_id"]))
    instruments, minutes, priced, counted = (
        trades["instrument_id"][order],
        minutes[order],
        priced[order],
        counted[order],
    )
    prices, sizes = trades["price"][order], trades["size"][order]
    rows = np.arange(len(order))
    starts = np.flatnonzero(np.r_[True, (instruments[1:] != instruments[:-1]) | (minutes[1:] != minutes[:-1])])
    first = np.minimum.reduceat(np.where(priced, rows, len(rows)), starts).tolist()
    last = np.maximum.reduceat(np.where(priced, rows, -1), starts).tolist()
    limits = np.iinfo(np.int64)
    highs = np.maximum.reduceat(np.where(priced, prices, limits.min), starts).tolist()
    lows = np.minimum.reduceat(np.where(priced, prices, limits.max), starts).tolist()
    volumes = _exact_sums(np.where(counted, sizes, 0), starts)
    counts = np.diff(np.r_[starts, len(rows)]).tolist()
    for index, start in enumerate(starts.tolist()):
        bar = MinuteBar(start=int(minutes[start]), volume=volumes[index], trades=counts[index])
        if last[index] >= 0:
            bar.open, bar.close = int(prices[first[index]]), int(prices[last[index]])
            bar.high, bar.low = highs[index], lows[index]
        by_instrument[int(instruments[start])].minutes.append(bar)


def _exact_sums(sizes: Column, starts: Column) -> list[int]:
    """Sum int64 sizes per group without overflow: a size may be 9.2e18 nanos, so two halves are summed apart."""
    high = np.add.reduceat(sizes >> 31, starts).tolist()
    low = np.add.reduceat(sizes & 0x7FFFFFFF, starts).tolist()
    return [(upper << 31) + lower for upper, lower in zip(high, low, strict=True)]


@dataclass(slots=True)
class InstrumentState:
    """What is known of one instrument now. Prices and sizes in nanos."""

    id: int
    symbol: str
    venue: str = ""
    epoch: int = 0
    sequence: int = 0
    ts_event: int = 0
    ts_publish: int = 0
    last: int | None = None
    size: int | None = None
    quote: tuple[int, int, int, int] | None = None
    volume: int = 0
    session_date: int = 0
    reference: int | None = None
    reference_kind: str = ""  # close: the previous session's; open: this session's, while there is no earlier one
    state: str = "unknown"
    minute: MinuteBar | None = None


@dataclass(slots=True, frozen=True)
class ClosedBar:
    """A bar of `integrated/bars`, prices and volume as the event's decimal texts, start in ns."""

    instrument_id: int
    timeframe: str
    start: int
    open: str
    high: str
    low: str
    close: str
    volume: str
    trades: int
    revision: int
    reason: str

    def render(self, first: int) -> list[str]:
        """Write the row of the `bars` channels."""
        prices = (self.open, self.high, self.low, self.close, self.volume)
        return [
            protocol.encode((self.instrument_id, first, self.start, *prices, self.trades, self.revision, self.reason))
        ]


@dataclass(slots=True, frozen=True)
class FeedEvent:
    """A line of the event feed; `link` is a path of this site or empty, `word` a venue's status or empty."""

    ts: int
    kind: str
    severity: str
    instrument_id: int | None
    text: str
    link: str
    word: str = ""


@dataclass(slots=True, frozen=True)
class PipelineSample:
    """Rates of the last second (per s), the delay from the broker to a stored row (ms), and what waits to be sent."""

    ts: int
    received: float
    validated: float
    stored: float
    sent: float
    quarantined: float
    delay_ms: float | None
    unsent: int


@dataclass(slots=True)
class Snapshot:
    """The state in PostgreSQL up to and with batch `pub_seq` of `epoch`; later messages are folded on top of it."""

    epoch: int
    pub_seq: int
    instruments: list[InstrumentState]


class Board:
    """Folds changes into instrument states and tells the hub which rows changed."""

    def __init__(self, *, epoch: str) -> None:
        self.instruments: dict[int, InstrumentState] = {}
        self.ignored: set[int] = set()  # known, and not for showing: the canary
        self.holes = 0  # sequence numbers that never came
        self.unknown_ticks = 0
        self.ticks = 0
        self.quotes = LatestChannel(self._quote_row)
        self.trades = StreamChannel(
            row_limit=protocol.STREAM_ROWS,
            max_age_ns=protocol.STREAM_SECONDS * 10**9,
            snapshot_rows=protocol.SNAPSHOT_ROWS,
        )
        self.minutes = LatestChannel(self._minute_row)
        # A closed bar is said exactly once per revision, so these are streams; the minute in the making is not.
        self.bars = {
            timeframe: StreamChannel(row_limit=BARS_KEPT, max_age_ns=None, snapshot_rows=1)
            for timeframe in protocol.TIMEFRAMES
        }
        self.events = StreamChannel(row_limit=EVENTS_KEPT, max_age_ns=None, snapshot_rows=protocol.SNAPSHOT_ROWS)
        self.pipeline = StreamChannel(row_limit=PIPELINE_KEPT, max_age_ns=None, snapshot_rows=PIPELINE_KEPT)
        self.hub = Hub(
            epoch=epoch,
            channels={
                protocol.QUOTES: self.quotes,
                protocol.TRADES: self.trades,
                protocol.MINUTES: self.minutes,
                **{f"bars.{timeframe}": channel for timeframe, channel in self.bars.items()},
                protocol.EVENTS: self.events,
                protocol.PIPELINE: self.pipeline,
            },
        )
        self._oldest_publish: int | None = None

    # -- input ---------------------------------------------------------------------------------------------------------

    def load(self, snapshot: Snapshot) -> None:
        """Take the stored state as the truth; only the stream's own numbers are kept, so that a hole is still seen."""
        q = self.hub.advance()
        for state in snapshot.instruments:
            known = self.instruments.get(state.id)
            if known is not None:
                state.epoch, state.sequence, state.state = known.epoch, known.sequence, known.state
            self.instruments[state.id] = state
            self.hub.name(state.symbol, state.id)
            self.quotes.touch(state.id, q=q)
            if state.minute is not None:
                self.minutes.touch(state.id, q=q)

    def skip(self, changes: Iterable[Change], *, at: int) -> bool:
        """Follow the numbers of a message whose ticks the loaded state holds already."""
        is_whole = True
        for change in changes:
            state = self.instruments.get(change.instrument_id)
            if state is not None and not _is_repeat(state, change):
                is_whole = self._follow(state, change, at) and is_whole
        return is_whole

    def apply(self, changes: Iterable[Change], *, at: int) -> bool:
        """Fold one message in. False: numbers are missing or overlap, or an instrument is new: load the stored state again."""
        q = self.hub.advance()
        is_whole = True
        for change in changes:
            state = self.instruments.get(change.instrument_id)
            if state is None:
                if change.instrument_id not in self.ignored:
                    self.unknown_ticks += change.count
                    is_whole = False
            elif not _is_repeat(state, change):
                is_whole = self._follow(state, change, at) and is_whole
                self._fold(state, change, q, at)
        return is_whole

    def apply_bar(self, bar: ClosedBar) -> None:
        """Send a closed or revised bar to those who follow it."""
        if bar.instrument_id in self.instruments:
            q = self.hub.advance()
            self.bars[bar.timeframe].append(bar.instrument_id, count=1, q=q, at=bar.start, render=bar.render)

    def add_event(self, event: FeedEvent) -> None:
        """Append a line to the event feed."""

        def render(first: int) -> list[str]:
            row = (_SERVICE, first, event.ts, event.kind, event.severity, event.instrument_id, event.text, event.link)
            return [protocol.encode(row)]

        self.events.append(_SERVICE, count=1, q=self.hub.advance(), at=event.ts, render=render)

    def add_sample(self, sample: PipelineSample) -> None:
        """Append the rates of a second."""

        def render(first: int) -> list[str]:
            rates = (sample.received, sample.validated, sample.stored, sample.sent, sample.quarantined)
            return [
                protocol.encode(
                    (_SERVICE, first, sample.ts, *(round(rate, 1) for rate in rates), sample.delay_ms, sample.unsent)
                )
            ]

        self.pipeline.append(_SERVICE, count=1, q=self.hub.advance(), at=sample.ts, render=render)

    def judge(self, now: int, venues: Mapping[str, str], words: Mapping[int, str]) -> None:
        """Decide every instrument's state from its venue's calendar state, the venue's last word on it, and the age of its ticks."""
        q = self.hub.advance()
        for state in self.instruments.values():
            found = judged(state, now, venues.get(state.venue, "unknown"), words.get(state.id, "open"))
            if found != state.state:
                state.state = found
                self.quotes.touch(state.id, q=q)
                text = protocol.status(symbol=state.symbol, state=found, reason=_REASONS[found], ts=now)
                for client in list(self.hub.clients):
                    group = client.groups.get(protocol.QUOTES)
                    if group is not None and state.id in group.subjects:
                        self.hub.control(client, text, now)

    def take_delay_ms(self, now: int) -> int | None:
        """Give the age of the oldest tick folded since the last call, by the broker's publish time; None: there was none."""
        oldest, self._oldest_publish = self._oldest_publish, None
        return None if oldest is None else max(0, (now - oldest) // 1_000_000)

    # -- folding -------------------------------------------------------------------------------------------------------

    def _follow(self, state: InstrumentState, change: Change, at: int) -> bool:
        """Compare the message's numbers with those expected; say and count what is missing."""
        expected = state.sequence + 1 if change.epoch == state.epoch else (1 if state.epoch else change.first)
        missing = change.first - expected
        inner = change.last - change.first + 1 - change.count
        state.epoch, state.sequence = change.epoch, change.last
        if missing == 0 and inner == 0:
            return True
        self.holes += max(0, missing) + max(0, inner)
        last = change.first - 1 if missing > 0 else change.last
        text = protocol.gap(channel=protocol.QUOTES, symbol=state.symbol, first=expected, last=last, at="feed")
        self.hub.broadcast(text, at)
        return False

    def _fold(self, state: InstrumentState, change: Change, q: int, at: int) -> None:
        self.ticks += change.count
        if self._oldest_publish is None or change.ts_publish < self._oldest_publish:
            self._oldest_publish = change.ts_publish
        self.quotes.touch(state.id, q=q, updates=change.count)
        if fold(state, change):
            self.minutes.touch(state.id, q=q)
        if change.trades is not None:
            trades = change.trades
            self.trades.append(state.id, count=len(trades.price), q=q, at=at, render=trades.render)

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _quote_row(self, subject: int, number: int) -> str:
        state = self.instruments[subject]
        bid, bid_size, ask, ask_size = state.quote or (None, None, None, None)
        prices = ",".join(
            _text(value)
            for value in (state.last, state.size, bid, bid_size, ask, ask_size, state.volume, state.reference)
        )
        return f'[{subject},{number},{state.ts_event},{prices},"{state.reference_kind}","{state.state}"]'

    def _minute_row(self, subject: int, number: int) -> str:
        minute = self.instruments[subject].minute or MinuteBar(0)
        prices = ",".join(_text(value) for value in (minute.open, minute.high, minute.low, minute.close, minute.volume))
        return f"[{subject},{number},{minute.start},{prices},{minute.trades}]"


def fold(state: InstrumentState, change: Change) -> bool:
    """Fold a change into a state; True when the open minute changed and has a price."""
    state.ts_event, state.ts_publish = change.ts_event, change.ts_publish
    _turn_session(state, change)
    if change.session_date == state.session_date:
        state.volume += change.volume
    if change.price is not None:
        state.last, state.size = change.price, change.size
    if change.quote is not None:
        state.quote = change.quote
    is_changed = False
    for minute in change.minutes:
        if state.reference is None and minute.open is not None:
            state.reference, state.reference_kind = minute.open, "open"
        if state.minute is None or minute.start > state.minute.start:
            state.minute = minute
        elif minute.start == state.minute.start:
            state.minute.add(minute)
        else:
            continue  # late: the closed bar's revision says it
        is_changed = True
    return is_changed and state.minute is not None and state.minute.close is not None


def _turn_session(state: InstrumentState, change: Change) -> None:
    if change.session_date <= state.session_date:
        return
    if state.session_date and state.last is not None:
        state.reference, state.reference_kind = state.last, "close"
    state.session_date = change.session_date
    state.volume = 0


def _is_repeat(state: InstrumentState, change: Change) -> bool:
    return change.epoch < state.epoch or (change.epoch == state.epoch and change.last <= state.sequence)


_REASONS: Final = {
    "open": "the venue is open and ticks arrive",
    "stale": f"no tick for {STALE_AFTER_NS // 10**9} s while the venue is open",
    "halted": "the venue halted it",
    "auction": "the venue holds an auction",
    "closed": "the venue is closed",
    "unknown": "the venue's calendar is unknown",
    "waiting": "no tick yet",
}


def judged(state: InstrumentState, now: int, venue: str, word: str) -> str:
    """Give the state to show: the venue's word on the instrument wins, then its calendar, then the age of the last tick."""
    if word in ("halted", "auction", "closed"):
        return word
    if venue != "open":
        return "closed" if venue == "closed" else "unknown"
    if state.ts_publish == 0:
        return "waiting"
    return "stale" if now - state.ts_publish > STALE_AFTER_NS else "open"


def _text(value: int | None) -> str:
    return "null" if value is None else f'"{text_from_nanos(value)}"'
