"""Holds what came against what is stored: each batch's own count of its events against its decisions, and these against the tables.

For each batch, by (source, channel, session): received = ticks + status changes and delivered bars + quarantined + parked + repeats,
where a refused claim counts under its bytes; and the tables hold exactly these rows of that batch. Batches are looked at once, some
seconds after they were committed; sums are kept in ChannelTally, so that they outlive the batches. Changes nothing else.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from django.db import connection, transaction
from django.db.models import F, Min, Sum
from django.utils import timezone

from integration.display import counted
from integration.market.identity import BLOCK_BITS, Identities, KnownIdentities
from integration.market.tally import BYTES, Key, count_by_key
from integration.market.ticks import Ticks
from integration.market.times import days_from_date
from integration.models import (
    ChannelTally,
    Gap,
    LakeDay,
    Position,
    QuarantinedEvent,
    Reconciliation,
    Source,
    UpstreamEvent,
)
from integration.reference import load_reference
from integration.rows import unpack_payload
from integration.storage import Extras, binary_cursor, read_extras
from integration.trace import known_identities

BATCHES_A_STEP: Final = 100
SETTLED_NS: Final = 2_000_000_000  # a batch this old is committed or never will be: `ts_processed` is taken just before
DAY_NS: Final = 86_400_000_000_000
_SPAN_NS: Final = 60_000_000_000
_NAMED: Final = 20  # differences that are written out; more are counted


@dataclass(slots=True)
class _BatchCounts:
    """What one batch says of itself."""

    id: int
    number: int
    is_release: bool
    has_tally: bool
    ticks: Counter[Key]  # of the payload, without canaries
    canaries: Counter[Key]
    others: Counter[Key]  # events without a tick row: status changes, delivered bars, refused, parked
    received: Counter[Key]
    repeats: Counter[Key]
    claims: Counter[Key]
    columns: tuple[int, int, int]  # tick_count, rejected + parked, duplicate_count of the row
    times: npt.NDArray[np.int64]

    def differences(self) -> Iterator[str]:
        """Say where the batch does not add up by itself."""
        if not self.has_tally:
            return
        came = self.received.copy()
        came[BYTES] += self.claims.total()
        went = self.ticks + self.canaries + self.others + self.repeats + self.claims
        for key in sorted({*came, *went}):
            if came[key] != went[key]:
                yield f"batch {self.id} {_words(key)}: {came[key]} received, {went[key]} decided"
        tick_count, _, duplicates = self.columns
        for what, here, there in (
            ("ticks", tick_count, self.ticks.total()),
            ("repeats", duplicates, self.repeats.total()),
        ):
            if here != there:
                yield f"batch {self.id}: {here} {what} by its row, {there} by its events"


@dataclass(slots=True)
class Balance:
    """What a run found. `differences` is empty when everything adds up."""

    batches: int = 0
    without_tally: int = 0
    differences: list[str] = field(default_factory=list)
    more: int = 0

    def add(self, words: Iterable[str]) -> None:
        """Note differences; beyond a few they are only counted."""
        for text in words:
            if len(self.differences) < _NAMED:
                self.differences.append(text)
            else:
                self.more += 1

    @property
    def is_even(self) -> bool:
        """Say whether nothing is lost and nothing counted twice."""
        return not self.differences


@dataclass(frozen=True, slots=True)
class ChannelSequences:
    """The numbers of a channel: `missing` lie between the lowest and the highest seen; `in_gaps` of them are in the gap ledger.

    Numbers below `lowest` are not judged: we joined there. Of numbers that have left memory nothing is told.
    """

    source: str
    channel: int
    session: int
    lowest: int
    highest: int
    seen: int
    in_gaps: int

    @property
    def missing(self) -> int:
        """How many numbers between the lowest and the highest have not come."""
        return self.highest - self.lowest + 1 - self.seen


def reconcile(*, now_ns: int, again: bool = False, seconds: float = 60.0) -> Balance:
    """Look at every settled batch that was not looked at yet (`again`: at all that are kept), for at most so many seconds."""
    balance, end = Balance(), time.monotonic() + seconds
    if again:
        with transaction.atomic():
            ChannelTally.objects.all().delete()
            Reconciliation.objects.all().delete()
    canary = load_reference().canary
    for position in Position.objects.defer("snapshot", "message_id").order_by("id"):
        while time.monotonic() < end and _step(position, now_ns, canary, balance):
            pass
    for kept in Reconciliation.objects.exclude(difference="").order_by("position_id"):
        if kept.difference not in balance.differences:
            balance.add([kept.difference])
    return balance


def _step(position: Position, now_ns: int, canary: npt.NDArray[np.bool_], balance: Balance) -> bool:
    """Look at the next batches of a partition in one snapshot of the database; False when there are none."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        done = _progress(position)
        batches = list(_read_batches(position, done.number, now_ns, canary))
        if not batches:
            return False
        found = list(_hold_against_tables(batches))
        for batch in batches:
            found += batch.differences()
        found += _holes(done.number, batches)
        _keep(position, done, batches, found)
    balance.batches += len(batches)
    balance.without_tally += sum(not batch.has_tally for batch in batches)
    balance.add(found)
    return True


def _progress(position: Position) -> Reconciliation:
    done = Reconciliation.objects.select_for_update().filter(position=position).first()
    if done is None:
        first = position.batches.aggregate(n=Min("number"))["n"]
        done = Reconciliation.objects.create(position=position, number=(first or 1) - 1)
    return done


def _read_batches(position: Position, after: int, now_ns: int, canary: npt.NDArray[np.bool_]) -> Iterator[_BatchCounts]:
    with binary_cursor() as cursor:
        cursor.execute(
            """
            SELECT id, number, is_release, tick_count, rejected_count + parked_count, duplicate_count, payload, extras
              FROM integration_batch WHERE position_id = %s AND number > %s AND ts_processed < %s ORDER BY number LIMIT %s
            """,
            [position.pk, after, now_ns - SETTLED_NS, BATCHES_A_STEP],
        )
        for pk, number, is_release, ticks, refused, duplicates, payload, extras in cursor:
            facts = (pk, number, is_release)
            yield _counted(facts, (ticks, refused, duplicates), unpack_payload(payload), read_extras(extras), canary)


def _counted(
    facts: tuple[int, int, bool],
    columns: tuple[int, int, int],
    ticks: Ticks,
    extras: Extras,
    canary: npt.NDArray[np.bool_],
) -> _BatchCounts:
    is_canary = canary[np.minimum(ticks.instrument_id, len(canary) - 1)]
    counted_ticks = ticks.take(~is_canary) if is_canary.any() else ticks
    others = np.array(extras.identities, np.int64).reshape(-1, 5)
    tallies: list[Counter[Key]] = [Counter(), Counter(), Counter()]
    for source_id, channel, session, *counts in extras.tally:
        for tally, count in zip(tallies, counts, strict=True):
            tally[source_id, channel, session] += count
    return _BatchCounts(
        *facts,
        has_tally=bool(extras.tally) or not (len(ticks) or extras.identities or columns[2]),
        ticks=Counter(count_by_key(_identities(counted_ticks))),
        canaries=Counter(count_by_key(_identities(ticks.take(is_canary)))),
        others=Counter(count_by_key(Identities(*(others[:, column] for column in range(5))))),
        received=tallies[0],
        repeats=tallies[1],
        claims=tallies[2],
        columns=columns,
        times=counted_ticks.ts_event,
    )


def _identities(ticks: Ticks) -> Identities:
    return Identities(ticks.source_id, ticks.channel, ticks.session, ticks.sequence, ticks.ts_event)


def _holes(after: int, batches: Sequence[_BatchCounts]) -> Iterator[str]:
    """Batch numbers are gapless: one that is missing took its events with it."""
    for before, batch in zip([after, *(batch.number for batch in batches)], batches, strict=False):
        if batch.number != before + 1:
            yield f"batches {before + 1} to {batch.number - 1} of the partition of batch {batch.id} are gone"


# -- the tables ---------------------------------------------------------------------------------------------------------


def _hold_against_tables(batches: Sequence[_BatchCounts]) -> Iterator[str]:
    """Compare the rows that the tables hold of these batches with what the batches say."""
    ids = [batch.id for batch in batches]
    stored = _stored_ticks(ids, np.concatenate([batch.times for batch in batches]))
    sides, quarantined = _side_rows(ids), _quarantine_rows(ids)
    archived = _archived_days()
    for batch in batches:
        # A day that moved to the lake was counted and summed by that move; its rows are in no slice any more.
        is_moved = bool(np.isin(batch.times // DAY_NS, archived).any())
        for key in () if is_moved else sorted({*batch.ticks, *stored.get(batch.id, {})}):
            here, there = stored.get(batch.id, Counter())[key], batch.ticks[key]
            if here != there:
                yield f"batch {batch.id} {_words(key)}: {there} ticks accepted, {here} in the tables"
        kept = sides.get(batch.id, Counter()) + quarantined.get(batch.id, Counter())
        # A release writes no new row for what it refuses again.
        keys = () if batch.is_release else sorted({*batch.others, *kept})
        for key in keys:
            if kept[key] != batch.others[key]:
                yield f"batch {batch.id} {_words(key)}: {batch.others[key]} turned away or beside ticks, {kept[key]} in the tables"


def _archived_days() -> npt.NDArray[np.int64]:
    return np.array([days_from_date(day) for day in LakeDay.objects.values_list("day", flat=True).distinct()], np.int64)


def _stored_ticks(ids: list[int], times: npt.NDArray[np.int64]) -> dict[int, Counter[Key]]:
    found: dict[int, Counter[Key]] = {}
    with connection.cursor() as cursor:
        for low, high in _spans(times):
            for table in ("trade", "quote"):
                cursor.execute(
                    f"""
                    SELECT batch_id, source_id, channel, session, count(*) FROM integration_{table}
                     WHERE ts_event BETWEEN %s AND %s AND batch_id = ANY(%s) GROUP BY 1, 2, 3, 4
                    """,  # noqa: S608 - only our own table names are put in
                    [low, high, ids],
                )
                for batch_id, *key, count in cursor.fetchall():
                    found.setdefault(batch_id, Counter())[_key(key)] += count
    return found


def _spans(times: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Split times into ranges without large holes, so that few slices are read; the ends lie a little outside, for strangers."""
    if not len(times):
        return []
    ordered = np.sort(times)
    cuts = np.flatnonzero(np.diff(ordered) > 2 * _SPAN_NS) + 1
    return [(int(part[0]) - _SPAN_NS, int(part[-1]) + _SPAN_NS) for part in np.split(ordered, cuts)]


def _side_rows(ids: list[int]) -> dict[int, Counter[Key]]:
    found: dict[int, Counter[Key]] = {}
    rows = UpstreamEvent.objects.filter(batch_id__in=ids, id__gte=0)
    for batch_id, *key in rows.values_list("batch_id", "source_id", "channel", "session"):
        found.setdefault(batch_id, Counter())[_key(key)] += 1
    return found


def _quarantine_rows(ids: list[int]) -> dict[int, Counter[Key]]:
    codes = dict(Source.objects.values_list("code", "id"))
    found: dict[int, Counter[Key]] = {}
    rows = QuarantinedEvent.objects.filter(batch_id__in=ids)
    for batch_id, code, *key in rows.values_list("batch_id", "source", "channel", "session"):
        found.setdefault(batch_id, Counter())[_key([codes.get(code, 0), *key])] += 1
    return found


def _key(key: Sequence[int]) -> Key:
    source_id, channel, session = key
    return BYTES if channel == BYTES[1] else (source_id, channel, session)


def _words(key: Key) -> str:
    return "(known by bytes)" if key == BYTES else f"(source {key[0]}, channel {key[1]}, session {key[2]})"


# -- the sums -----------------------------------------------------------------------------------------------------------


def _keep(position: Position, done: Reconciliation, batches: Sequence[_BatchCounts], found: list[str]) -> None:
    sums: dict[Key, Counter[str]] = {}
    for batch in batches:
        columns: dict[str, Counter[Key]] = {
            "ticks": batch.ticks + batch.canaries,
            "others": batch.others,
            "received": batch.received,
        }
        columns |= {"repeats": batch.repeats, "refused_claims": batch.claims}
        for name, by_key in columns.items():
            for key, count in by_key.items():
                # What an operator released was received before: it is counted apart.
                sums.setdefault(key, Counter())["released" if batch.is_release and name == "received" else name] += (
                    count
                )
    for (source_id, channel, session), counts in sorted(sums.items()):
        row, _ = ChannelTally.objects.get_or_create(
            position=position, source_id=source_id, channel=channel, session=session
        )
        ChannelTally.objects.filter(pk=row.pk).update(**{name: F(name) + count for name, count in counts.items()})
    done.number = batches[-1].number
    done.batches_without_tally += sum(not batch.has_tally for batch in batches)
    done.checked_at = timezone.now()
    if found and not done.difference:
        more = f" and {counted(len(found) - 1, 'more', 'more')}" if len(found) > 1 else ""
        done.difference = f"{found[0]}{more}"[:400]
    done.save()


def totals() -> list[dict[str, Any]]:
    """Give the kept sums by source, channel and session, over all partitions."""
    codes = dict(Source.objects.values_list("id", "code"))
    names = ("received", "released", "ticks", "others", "repeats", "refused_claims")
    rows: Any = ChannelTally.objects.values("source_id", "channel", "session").annotate(
        **{f"{name}_sum": Sum(name) for name in names}
    )
    return [
        {
            "source": codes.get(row["source_id"], ""),
            "channel": row["channel"],
            "session": row["session"],
            **{name: row[f"{name}_sum"] for name in names},
        }
        for row in rows.order_by("source_id", "channel", "session")
    ]


# -- numbers ------------------------------------------------------------------------------------------------------------


def channel_sequences() -> list[ChannelSequences]:
    """Count, by channel and session, the numbers that any partition has seen, and hold what is missing against the gap ledger."""
    codes = dict(Source.objects.values_list("id", "code"))
    everywhere = [known_identities(position) for position in Position.objects.order_by("id")]
    keys = sorted({key for known in everywhere for key in known.channels})
    return [_sequences_of(key, codes.get(key[0], ""), everywhere) for key in keys]


def _sequences_of(key: Key, source: str, everywhere: Sequence[KnownIdentities]) -> ChannelSequences:
    blocks: dict[int, npt.NDArray[np.uint8]] = {}
    floor = 0
    for known in everywhere:
        if key in known.channels:
            floor = max(floor, known.channels[key].floor)
            for number, bits in known.channels[key].blocks.items():
                blocks[number] = blocks[number] | bits if number in blocks else bits
    whole = {
        number: np.flatnonzero(np.unpackbits(bits)) for number, bits in blocks.items() if number * BLOCK_BITS >= floor
    }
    filled = {number: places for number, places in sorted(whole.items()) if len(places)}
    if not filled:
        return ChannelSequences(source, key[1], key[2], 1, 0, 0, 0)
    first, last = min(filled), max(filled)
    lowest = first * BLOCK_BITS + int(filled[first][0])
    highest = last * BLOCK_BITS + int(filled[last][-1])
    seen = sum(len(places) for places in filled.values())
    return ChannelSequences(source, key[1], key[2], lowest, highest, seen, _in_gaps(key, lowest))


def _in_gaps(key: Key, lowest: int) -> int:
    holes = Gap.objects.filter(source_id=key[0], channel=key[1], session=key[2], first__gte=lowest)
    total: int | None = holes.exclude(state=Gap.State.FILLED).aggregate(n=Sum(F("last") - F("first") + 1))["n"]
    return total or 0
