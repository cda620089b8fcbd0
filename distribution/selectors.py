"""Reads for the live desk: the stored state that the board starts from, bars for the chart, and what the service did lately.

Every query here is bounded by an index or by the number of instruments; none is per tick.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import numpy as np
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.sessions.models import Session
from django.db import connection, transaction
from django.db.models import Model, Q, QuerySet
from django.urls import NoReverseMatch, reverse
from django.utils import timezone

from distribution.board import (
    COLUMNS_READ,
    MINUTE_NS,
    Column,
    FeedEvent,
    InstrumentState,
    PipelineSample,
    Snapshot,
    fold,
    reduce_ticks,
)
from integration.canary import VENUE as CANARY_VENUE
from integration.market.sessions import SessionTable, session_table
from integration.market.ticks import CANCEL, CORRECT, FLAG_CANCEL, FLAG_CORRECTION, NEW, TRADE
from integration.market.units import text_from_nanos
from integration.models import (
    Alert,
    Gap,
    Instrument,
    InstrumentAlias,
    InstrumentStatus,
    Listing,
    QuarantinedEvent,
    SequencerState,
    Venue,
)

SECOND_NS: Final = 1_000_000_000
# A session is at most a day and its pre-market; bars older than this before the newest belong to another one.
SESSION_SPAN_NS: Final = 26 * 3600 * SECOND_NS
# Ticks after the newest closed minute: partitions do not lag one another by more than this while the service is well.
TAIL_NS: Final = 5 * MINUTE_NS
QUOTES_NS: Final = MINUTE_NS
SPARK_MINUTES: Final = 60
FIRST_EVENTS: Final = 30
EVENTS_PER_LOOK: Final = 20
ALERT_ROUND_S: Final = 2.0  # alerts of one round are opened in one transaction
OUT_OF_ORDER: Final = 500  # ids that may still become visible below the newest one


# -- instruments ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class DeskInstrument:
    """What the desk must know to show an instrument."""

    id: int
    symbol: str
    name: str
    asset_class: str
    venue: str
    venue_name: str
    currency: str
    decimals: int
    badge: str  # "simulated", "replay" or empty: where the venue is not a registered one


def desk_instruments() -> list[DeskInstrument]:
    """Give the active instruments by symbol; the canary is none."""
    symbols = _symbols()
    listings: dict[int, Listing] = {}
    for listing in Listing.objects.select_related("venue").order_by("is_primary", "id"):
        listings[listing.instrument_id] = listing
    found = [
        _desk_instrument(instrument, listings.get(instrument.id), symbols)
        for instrument in Instrument.objects.filter(is_active=True).exclude(listings__venue_id=CANARY_VENUE)
    ]
    return sorted(found, key=lambda instrument: instrument.symbol)


def _desk_instrument(instrument: Instrument, listing: Listing | None, symbols: Mapping[int, str]) -> DeskInstrument:
    venue = listing.venue if listing else None
    badge = ""
    if venue is not None and venue.is_internal:
        badge = "replay" if venue.name.lower().startswith("replay") else "simulated"
    return DeskInstrument(
        id=instrument.id,
        symbol=symbols.get(instrument.id, f"#{instrument.id}"),
        name=instrument.name.removesuffix(f" ({badge})") if badge else instrument.name,
        asset_class=instrument.get_asset_class_display(),
        venue=venue.mic if venue else "",
        venue_name=venue.name if venue else "no venue",
        currency=listing.currency if listing else "",
        decimals=instrument.price_decimals,
        badge=badge,
    )


def _symbols() -> dict[int, str]:
    """Give each instrument's name of today: its ticker, else any alias."""
    now = timezone.now()
    valid = InstrumentAlias.objects.filter(
        Q(valid_from=None) | Q(valid_from__lte=now), Q(valid_to=None) | Q(valid_to__gt=now)
    )
    aliases = sorted(valid, key=lambda alias: (alias.scheme == InstrumentAlias.Scheme.TICKER, alias.pk))
    return {alias.instrument_id: alias.wire_text for alias in aliases}


# -- venues --------------------------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class VenueState:
    """A venue's calendar state now; `changes_at` in ns, None when it never does or nobody knows."""

    mic: str
    name: str
    state: str
    changes_at: int | None
    always_open: bool
    timezone: str


def venue_table(calendar: str, now: int) -> SessionTable:
    """Give the sessions of a calendar, this year's and the next's included; `now` in ns."""
    year = datetime.fromtimestamp(now / SECOND_NS, UTC).year
    return session_table(calendar, first_year=year - 1, last_year=year + 1)


def venue_states(now: int) -> list[VenueState]:
    """Give the state of every venue that has an active instrument; the canary's is none."""
    venues = Venue.objects.filter(listings__instrument__is_active=True).exclude(mic=CANARY_VENUE).distinct()
    states = []
    for venue in venues:
        table = venue_table(venue.calendar, now)
        state = table.state(now)
        states.append(
            VenueState(venue.mic, venue.name, state, table.next_change(now), table.always_open, venue.timezone)
        )
    return states


# -- the board's stored state --------------------------------------------------------------------------------------------

# A bar whose last trade was cancelled is kept with `last_ts` 0 (docs/events.md): it is no bar. Fifty in a row are looked over.
_BARS_SQL: Final = """
SELECT u.id, newest.session_date, newest.close, newest."end", newest.last_ts, day.volume, day.open, prior.close
FROM unnest(%s::int[]) AS u(id)
LEFT JOIN LATERAL (
    SELECT * FROM (
        SELECT DISTINCT ON (start) session_date, close, start, "end", last_ts FROM integration_bar
        WHERE instrument_id = u.id AND timeframe = '1m' AND source_id = 0 AND revision > 0 ORDER BY start DESC, revision DESC LIMIT 50
    ) minutes WHERE last_ts > 0 ORDER BY start DESC LIMIT 1
) newest ON true
LEFT JOIN LATERAL (
    SELECT sum(volume) AS volume, (array_agg(open ORDER BY start))[1] AS open FROM (
        SELECT DISTINCT ON (start) start, volume, open, session_date, last_ts FROM integration_bar
        WHERE instrument_id = u.id AND timeframe = '1m' AND source_id = 0 AND revision > 0 AND start > newest.start - %s
        ORDER BY start, revision DESC
    ) minutes WHERE minutes.session_date = newest.session_date AND last_ts > 0
) day ON true
LEFT JOIN LATERAL (
    SELECT close FROM (
        SELECT DISTINCT ON (start) close, start, last_ts FROM integration_bar
        WHERE instrument_id = u.id AND timeframe = '1d' AND source_id = 0 AND revision > 0 AND session_date < newest.session_date
        ORDER BY start DESC, revision DESC LIMIT 50
    ) days WHERE last_ts > 0 ORDER BY start DESC LIMIT 1
) prior ON true
"""

# Columns leave PostgreSQL as packed integers: row by row they cost more than the query. The order is that of the numbering.
_TRADES_SQL: Final = """
SELECT count(*), string_agg(int8send(t.instrument_id), ''::bytea ORDER BY {order}),
       string_agg(int8send(t.ts_event), ''::bytea ORDER BY {order}), string_agg(int8send(t.ts_publish), ''::bytea ORDER BY {order}),
       string_agg(int8send(t.price), ''::bytea ORDER BY {order}), string_agg(int8send(t.size), ''::bytea ORDER BY {order}),
       string_agg(int8send(t.conditions), ''::bytea ORDER BY {order}), string_agg(int8send(t.flags), ''::bytea ORDER BY {order}),
       string_agg(int8send(t.session_date - DATE '1970-01-01'), ''::bytea ORDER BY {order})
FROM integration_trade t
JOIN integration_batch b ON b.id = t.batch_id AND b.pub_seq <= %s
JOIN unnest(%s::int[], %s::bigint[]) AS edge(id, until) ON edge.id = t.instrument_id
WHERE t.ts_event >= %s AND t.ts_event >= edge.until
""".format(order="b.pub_seq, t.ts_event, t.sequence")
_TRADE_COLUMNS: Final = (
    "instrument_id",
    "ts_event",
    "ts_publish",
    "price",
    "size",
    "conditions",
    "flags",
    "session_date",
)

_QUOTES_SQL: Final = """
SELECT DISTINCT ON (q.instrument_id) q.instrument_id, q.ts_event, q.ts_publish, q.bid, q.bid_size, q.ask, q.ask_size
FROM integration_quote q
JOIN integration_batch b ON b.id = q.batch_id AND b.pub_seq <= %s
WHERE q.ts_event >= %s AND q.instrument_id = ANY(%s)
ORDER BY q.instrument_id, b.pub_seq DESC, q.ts_event DESC, q.sequence DESC
"""


def board_snapshot(now: int) -> Snapshot:
    """Give every active instrument's state up to the last numbered batch, all read at one point of time; `now` in ns."""
    with transaction.atomic(), connection.cursor() as cursor:
        if not connection.in_atomic_block or len(connection.savepoint_ids) == 0:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        numbering = SequencerState.objects.first() or SequencerState(epoch=0, pub_seq=0)
        states = {each.id: InstrumentState(each.id, each.symbol, each.venue) for each in desk_instruments()}
        if states:
            ends = _fill_from_bars(cursor, states)
            _fill_from_trades(cursor, states, ends, numbering.pub_seq, now)
            _fill_from_quotes(cursor, states, numbering.pub_seq, now)
    return Snapshot(epoch=numbering.epoch, pub_seq=numbering.pub_seq, instruments=list(states.values()))


def _fill_from_bars(cursor: Any, states: Mapping[int, InstrumentState]) -> dict[int, int]:
    """Fill last, volume and reference from closed bars; give the end (ns) of each instrument's newest closed minute."""
    cursor.execute(_BARS_SQL, [list(states), SESSION_SPAN_NS])
    ends = dict.fromkeys(states, 0)
    for number, session_date, close, end, last_ts, volume, opened, prior in cursor.fetchall():
        if session_date is None:
            continue
        state = states[number]
        state.session_date = (session_date - datetime(1970, 1, 1, tzinfo=UTC).date()).days
        state.last, state.ts_event, state.ts_publish = close, last_ts, last_ts
        state.volume = _nanos(volume)
        state.reference, state.reference_kind = (prior, "close") if prior is not None else (opened, "open")
        ends[number] = end
    return ends


def _fill_from_trades(
    cursor: Any, states: Mapping[int, InstrumentState], ends: Mapping[int, int], pub_seq: int, now: int
) -> None:
    """Fold the trades that no closed minute holds yet, by the same code that folds the stream."""
    since = max(*ends.values(), 0) - TAIL_NS if any(ends.values()) else now - 60 * MINUTE_NS
    cursor.execute(_TRADES_SQL, [pub_seq, list(ends), list(ends.values()), since])
    count, *packed = cursor.fetchone()
    if count:
        columns = {
            name: np.frombuffer(data, ">i8").astype(np.int64) for name, data in zip(_TRADE_COLUMNS, packed, strict=True)
        }
        for change in reduce_ticks(_as_ticks(columns, count)):
            fold(states[change.instrument_id], change)


def _as_ticks(columns: dict[str, Column], count: int) -> dict[str, Column]:
    """Give stored trades the columns of a message; the action is in the flags of a stored row."""
    flags = columns["flags"]
    action = np.where(flags & FLAG_CANCEL, CANCEL, np.where(flags & FLAG_CORRECTION, CORRECT, NEW))
    zeros = np.zeros(count, np.int64)
    return {
        **{name: zeros for name in COLUMNS_READ if name not in columns},
        **columns,
        "kind": zeros + TRADE,
        "action": action,
    }


def _fill_from_quotes(cursor: Any, states: Mapping[int, InstrumentState], pub_seq: int, now: int) -> None:
    cursor.execute(_QUOTES_SQL, [pub_seq, now - QUOTES_NS, list(states)])
    for number, ts_event, ts_publish, *prices in cursor.fetchall():
        state = states[number]
        state.quote = (prices[0], prices[1], prices[2], prices[3])
        state.ts_event, state.ts_publish = max(state.ts_event, ts_event), max(state.ts_publish, ts_publish)


def _nanos(number: Decimal | None) -> int:
    return 0 if number is None else int(number.scaleb(9))


# -- bars for the chart --------------------------------------------------------------------------------------------------

_HISTORY_SQL: Final = """
SELECT start, open, high, low, close, volume, trade_count, revision, is_partial FROM (
    SELECT DISTINCT ON (start) * FROM integration_bar
    WHERE instrument_id = %s AND timeframe = %s AND source_id = 0 AND revision > 0 AND start >= %s
    ORDER BY start DESC, revision DESC LIMIT %s
) newest WHERE last_ts > 0 ORDER BY start DESC
"""


@dataclass(slots=True, frozen=True)
class ChartBars:
    """Closed bars in ascending unique time, and what a chart needs to draw the one in the making. Times in ns."""

    decimals: int
    bars: list[list[Any]]
    open_start: int
    open_end: int
    minutes: list[list[Any]] = field(default_factory=list)


def chart_bars(instrument_id: int, timeframe: str, limit: int, now: int) -> ChartBars:
    """Give the newest `limit` bars of an instrument; Instrument.DoesNotExist when there is none."""
    instrument = Instrument.objects.get(pk=instrument_id, is_active=True)
    venue = Venue.objects.filter(listings__instrument=instrument).order_by("-listings__is_primary").first()
    table = venue_table(venue.calendar if venue else "24/7", now)
    starts, ends = table.bar_starts(np.array([now], np.int64), timeframe)
    start, end = int(starts[0]), int(ends[0])
    with connection.cursor() as cursor:
        cursor.execute(_HISTORY_SQL, [instrument_id, timeframe, 0, limit])
        bars = [_bar(row) for row in reversed(cursor.fetchall())]
        minutes = []
        if timeframe != "1m":
            cursor.execute(_HISTORY_SQL, [instrument_id, "1m", start, 1500])
            minutes = [_bar(row) for row in reversed(cursor.fetchall())]
    return ChartBars(instrument.price_decimals, bars, start, end, minutes)


def _bar(row: Sequence[Any]) -> list[Any]:
    start, opened, high, low, close, volume, trades, revision, is_partial = row
    prices = [text_from_nanos(value) for value in (opened, high, low, close)]
    return [start, *prices, text_from_nanos(_nanos(volume)), trades, revision, is_partial]


def sparklines(instrument_ids: Iterable[int], now: int) -> dict[int, list[int]]:
    """Give the closes (nanos) of the last hour's minutes, oldest first."""
    wanted = list(instrument_ids)
    closes: dict[int, list[int]] = {number: [] for number in wanted}
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT u.id, bars.close FROM unnest(%s::int[]) AS u(id) CROSS JOIN LATERAL ("
            " SELECT DISTINCT ON (start) start, close, last_ts FROM integration_bar WHERE instrument_id = u.id AND timeframe = '1m'"
            " AND source_id = 0 AND revision > 0 AND start >= %s ORDER BY start, revision DESC) bars WHERE last_ts > 0"
            " ORDER BY u.id, bars.start",
            [wanted, now - SPARK_MINUTES * MINUTE_NS],
        )
        for number, close in cursor.fetchall():
            closes[number].append(close)
    return closes


# -- what the service did lately -----------------------------------------------------------------------------------------

_COUNTS: Final = "coalesce(sum(tick_count), 0), coalesce(sum(rejected_count), 0), coalesce(sum(parked_count), 0), coalesce(sum(duplicate_count), 0)"
_NUMBERED_SQL: Final = f"""
SELECT {_COUNTS}, percentile_cont(0.95) WITHIN GROUP (ORDER BY ts_processed - ts_received) FILTER (WHERE tick_count > 0)
FROM integration_batch WHERE pub_seq > %s AND pub_seq <= %s AND position_id <> ALL(%s)
"""  # noqa: S608 - constants only
_UNNUMBERED_SQL: Final = f"SELECT {_COUNTS} FROM integration_batch WHERE pub_seq IS NULL AND position_id <> ALL(%s)"  # noqa: S608
_UNSENT_SQL: Final = """
SELECT coalesce(sum(b.tick_count), 0), count(*) FROM (
    SELECT pub_seq FROM integration_outgoingmessage WHERE sent_at IS NULL AND topic = %s ORDER BY id LIMIT 10000
) unsent LEFT JOIN integration_batch b ON b.pub_seq = unsent.pub_seq
"""


@dataclass(slots=True)
class Seen:
    """What one look found."""

    sample: PipelineSample | None = None
    events: list[FeedEvent] = field(default_factory=list)
    venues: list[VenueState] | None = None
    words: dict[int, str] = field(default_factory=dict)
    ignored: set[int] = field(default_factory=set)
    ended_sessions: set[tuple[int, str]] = field(default_factory=set)


@dataclass(slots=True)
class _Totals:
    """Counts since this watch began. Exact: numbered batches by their gapless number, the others by a partial index."""

    ts: int
    received: int
    validated: int
    stored: int
    sent: int
    quarantined: int


class ServiceWatch:
    """Looks at the tables once a second and tells what is new; one per desk, used from one thread at a time."""

    def __init__(self) -> None:
        self._pub_seq: int | None = None
        self._numbered = np.zeros(4, object)
        self._before: _Totals | None = None
        self._canary: list[int] = []
        self._ignored: set[int] = set()
        self._words: dict[int, str] | None = None
        self._tables = [
            _NewRows(QuarantinedEvent.objects.all(), _quarantined_event),
            _NewRows(Gap.objects.select_related("source"), _gap_event),
            _NewRows(Alert.objects.all(), _alert_event, together=_alerts_event),
            _NewRows(InstrumentStatus.objects.select_related("instrument"), _status_event),
        ]

    def look(self, now: int, *, identities: set[tuple[int, str]], with_venues: bool) -> Seen:
        """Read what changed since the last look; `identities` (user id, session key) are checked for being signed in still."""
        if with_venues or self._words is None:
            self._canary = _canary_positions()
            self._ignored = set(Instrument.objects.filter(listings__venue_id=CANARY_VENUE).values_list("id", flat=True))
        words, self._words = self._words or {}, latest_words()
        seen = Seen(sample=self._sample(now), words=self._words, ignored=self._ignored)
        if with_venues:
            seen.venues = venue_states(now)
        events = (event for table in self._tables for event in table.look())
        # A feed repeats "open" for every instrument when it starts; only an end of something else is news.
        news = (
            event for event in events if event.word != "open" or words.get(event.instrument_id or 0, "open") != "open"
        )
        seen.events = sorted(news, key=lambda event: event.ts)
        seen.ended_sessions = ended_sessions(identities)
        return seen

    def _sample(self, now: int) -> PipelineSample | None:
        totals, delay, unsent = self._count(now)
        before, self._before = self._before, totals
        if before is None or totals.ts <= before.ts:
            return None
        seconds = (totals.ts - before.ts) / SECOND_NS
        received, validated, stored, sent, quarantined = (
            max(0, getattr(totals, name) - getattr(before, name)) / seconds
            for name in ("received", "validated", "stored", "sent", "quarantined")
        )
        delay_ms = None if delay is None else round(float(delay) / 1e6, 1)
        return PipelineSample(now, received, validated, stored, sent, quarantined, delay_ms, unsent)

    def _count(self, now: int) -> tuple[_Totals, Any, int]:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT coalesce(max(pub_seq), 0) FROM integration_sequencerstate")
            (newest,) = cursor.fetchone()
            if self._pub_seq is None or newest < self._pub_seq:
                self._pub_seq = newest
            cursor.execute(_NUMBERED_SQL, [self._pub_seq, newest, self._canary])
            *numbered, delay = cursor.fetchone()
            cursor.execute(_UNNUMBERED_SQL, [self._canary])
            waiting = cursor.fetchone()
            cursor.execute(_UNSENT_SQL, [settings.INTEGRATED_TOPICS["ticks"]])
            unsent_ticks, unsent = cursor.fetchone()
        self._pub_seq = newest
        self._numbered = self._numbered + np.array(numbered, object)
        ticks, rejected, parked, duplicates = (
            int(done) + int(new) for done, new in zip(self._numbered, waiting, strict=True)
        )
        totals = _Totals(
            ts=now,
            received=ticks + rejected + parked + duplicates,
            validated=ticks + parked + duplicates,
            stored=ticks,
            sent=int(self._numbered[0]) - int(unsent_ticks),
            quarantined=rejected,
        )
        return totals, delay, int(unsent)


def latest_words() -> dict[int, str]:
    """Give each venue's last word on its instruments."""
    newest = InstrumentStatus.objects.order_by("instrument_id", "-ts_event", "-id").distinct("instrument_id")
    return dict(newest.values_list("instrument_id", "status"))


def _canary_positions() -> list[int]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT p.id FROM integration_position p JOIN integration_subscription s ON s.id = p.subscription_id WHERE s.topic = %s",
            [settings.CANARY_TOPIC],
        )
        return [number for (number,) in cursor.fetchall()]


class _NewRows:
    """Rows of a table that were not there at the last look; ids may become visible out of order, so the newest are remembered.

    With `together`, neighbours that are one piece of news (see `_is_one_news`) become one event.
    """

    def __init__(
        self,
        query: QuerySet[Any],
        describe: Callable[[Any], FeedEvent],
        together: Callable[[list[Any]], FeedEvent] | None = None,
    ) -> None:
        self._query = query
        self._describe = describe
        self._together = together
        self._known: deque[int] = deque(maxlen=2 * OUT_OF_ORDER)
        self._after: int | None = None

    def look(self) -> list[FeedEvent]:
        """Give the new rows as events, oldest first; when there are very many, the newest and a line that says how many more."""
        rows = self._query.order_by("-id")
        more = 0
        if self._after is None:
            fresh = list(rows[:FIRST_EVENTS])
            self._known.extend(reversed(rows.values_list("id", flat=True)[FIRST_EVENTS:OUT_OF_ORDER]))
        else:
            known = set(self._known)
            recent = rows.filter(id__gt=max(0, self._after - OUT_OF_ORDER))
            fresh = [row for row in recent[: OUT_OF_ORDER + EVENTS_PER_LOOK] if row.id not in known]
            if len(fresh) > EVENTS_PER_LOOK:
                more = self._query.filter(id__gt=self._after).count() - EVENTS_PER_LOOK
        self._known.extend(row.id for row in reversed(fresh))
        self._after = max([self._after or 0, *(row.id for row in fresh)])
        events = self._events(list(reversed(fresh[: max(FIRST_EVENTS, EVENTS_PER_LOOK)])))
        if more > 0:
            name = self._query.model._meta.verbose_name_plural  # noqa: SLF001 - documented by Django
            link = _admin(self._query.model, "changelist")
            last = events[-1]
            events.append(
                FeedEvent(last.ts, last.kind, "warning", None, f"{more} more {name} in the same second", link)
            )
        return events

    def _events(self, rows: list[Any]) -> list[FeedEvent]:
        if self._together is None:
            return [self._describe(row) for row in rows]
        groups: list[list[Any]] = []
        for row in rows:
            if groups and _is_one_news(groups[-1][-1], row):
                groups[-1].append(row)
            else:
                groups.append([row])
        return [self._describe(group[0]) if len(group) == 1 else self._together(group) for group in groups]


def _is_one_news(before: Alert, after: Alert) -> bool:
    """Tell whether two alerts opened in one round of the watch for one kind: one cause, and one line is enough."""
    return before.kind == after.kind and (after.opened_at - before.opened_at).total_seconds() < ALERT_ROUND_S


def _quarantined_event(row: QuarantinedEvent) -> FeedEvent:
    what = row.instrument or row.source or "unreadable message"
    kind = "parked" if row.state == QuarantinedEvent.State.PARKED else "quarantine"
    return FeedEvent(row.ts_received, kind, "warning", None, f"{what}: {row.code}: {row.detail}"[:300], _change(row))


def _gap_event(row: Gap) -> FeedEvent:
    count = row.last - row.first + 1
    text = f"{row.source.code} channel {row.channel}: {count} events never came ({row.first} to {row.last})"
    return FeedEvent(_ns(row.detected_at), "gap", "warning", None, text, _change(row))


def _alert_event(row: Alert) -> FeedEvent:
    key = _short(row.key)
    text = row.message if key in row.message else f"{key}: {row.message}"
    return FeedEvent(_ns(row.opened_at), "alert", str(row.severity), None, text[:300], _change(row))


def _alerts_event(rows: list[Alert]) -> FeedEvent:
    """Give one event for alerts of one kind that opened together, with their number and what they are about."""
    newest = rows[-1]
    keys = ", ".join(_short(row.key) for row in rows)
    text = f"{len(rows)} alerts {newest.kind}: {keys}"
    text = text if len(text) <= 300 else f"{text[:299]}…"
    return FeedEvent(_ns(newest.opened_at), "alert", str(newest.severity), None, text, _admin(Alert, "changelist"))


def _short(key: str) -> str:
    """Give the last part of a topic's or partition's name, which is what tells one from another."""
    return key.rpartition("/")[2]


def _status_event(row: InstrumentStatus) -> FeedEvent:
    severity = "warning" if row.status == InstrumentStatus.Status.HALTED else "info"
    return FeedEvent(
        row.ts_event,
        "status",
        severity,
        row.instrument_id,
        f"{row.instrument.name}: {row.status}, says the venue",
        "",
        row.status,
    )


def _ns(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000) * 1000


def _change(row: Any) -> str:
    return _admin(type(row), "change", row.pk)


def _admin(model: type[Model], page: str, *arguments: Any) -> str:
    """Give the path of an admin page; empty where the admin does not show this model."""
    try:
        return reverse(f"admin:integration_{model.__name__.lower()}_{page}", args=arguments)
    except NoReverseMatch:
        return ""


def ended_sessions(identities: set[tuple[int, str]]) -> set[tuple[int, str]]:
    """Give those of (user id, session key) that have signed out, run out, or been deactivated."""
    if not identities:
        return set()
    keys = [key for _, key in identities]
    present = set(
        Session.objects.filter(session_key__in=keys, expire_date__gt=timezone.now()).values_list(
            "session_key", flat=True
        )
    )
    users = [number for number, _ in identities]
    active = set(get_user_model().objects.filter(pk__in=users, is_active=True).values_list("pk", flat=True))
    return {identity for identity in identities if identity[0] not in active or identity[1] not in present}
