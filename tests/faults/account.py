"""Compares what was sent with what is stored and what was published: nothing lost, nothing twice, no hole, bars right."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pulsar
from django.db import connection

from integration import reconciliation
from integration.market.events import decode_bar, decode_numbered_ticks
from integration.market.ticks import NO_VOLUME_CONDITIONS, OFF_MARKET_CONDITIONS
from integration.models import Batch, Position
from tests.faults.stream import Row

MINUTE_NS = 60_000_000_000
HOUR_NS = 60 * MINUTE_NS


@dataclass
class Account:
    """What a comparison found. `lost`, `repeated` and `holes` must be 0 and `wrong` empty; `ended` counts processes that gave up by themselves."""

    events: int = 0
    lost: int = 0
    repeated: int = 0
    holes: int = 0
    bars: int = 0
    ended: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether nothing at all is amiss."""
        return not (self.lost or self.repeated or self.holes or self.wrong)


def rows(query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Give the rows of a query."""
    with connection.cursor() as cursor:
        cursor.execute(query, parameters)
        return list(cursor.fetchall())


def stored_count() -> int:
    """Count the stored trades of the test's source."""
    return int(rows("SELECT count(*) FROM integration_trade")[0][0])


def compare_stored(account: Account, sent: dict[tuple[int, int], Row], instruments: dict[str, int]) -> None:
    """Compare stored trades with what was sent, row by row: identity, instrument, price, size."""
    stored = Counter[tuple[int, int]]()
    for channel, sequence, instrument_id, price, size in rows(
        "SELECT channel, sequence, instrument_id, price, size FROM integration_trade"
    ):
        stored[channel, sequence] += 1
        text, sent_price, sent_size = sent.get((channel, sequence), ("", 0, 0))
        if (instruments.get(text), sent_price, sent_size) != (instrument_id, price, size):
            account.wrong.append(f"stored {channel}/{sequence} is not what was sent")
    account.events = len(sent)
    account.lost = len(sent.keys() - stored.keys())
    account.repeated += sum(count - 1 for count in stored.values())
    if quarantine := rows("SELECT code, count(*) FROM integration_quarantinedevent GROUP BY code"):
        account.wrong.append(f"quarantined though all events were good: {quarantine}")


def compare_balance(account: Account, sent: Iterable[tuple[int, int]]) -> None:
    """Check by source and channel: what was sent is what is stored, and what each batch received is what was decided about it."""
    wanted = Counter(channel for channel, _ in sent)
    stored = Counter(dict(rows("SELECT channel, count(*) FROM integration_trade GROUP BY channel")))
    if wanted != stored:
        account.wrong.append(f"by channel {dict(wanted)} were sent and {dict(stored)} are stored")
    balance = reconciliation.reconcile(now_ns=time.time_ns() + HOUR_NS, again=True, seconds=600)
    account.wrong += balance.differences
    ((batches,),) = rows("SELECT count(*) FROM integration_batch")
    if balance.batches != batches:
        account.wrong.append(f"{balance.batches} of {batches} batches were held against the tables")


def compare_books(account: Account) -> None:
    """Check positions, batch numbers and the sequencer's counter against the batches."""
    for position in Position.objects.all():
        numbers = list(Batch.objects.filter(position=position).order_by("number").values_list("number", flat=True))
        if numbers != list(range(1, position.number + 1)):
            account.wrong.append(f"batches of {position.partition} are not 1 to {position.number}")
        total = sum(Batch.objects.filter(position=position).values_list("tick_count", flat=True))
        if total != position.tick_count:
            account.wrong.append(f"{position.partition} counts {position.tick_count} ticks, its batches {total}")
    numbers = [number for (number,) in rows("SELECT pub_seq FROM integration_batch WHERE pub_seq IS NOT NULL")]
    account.holes += len(set(range(1, len(numbers) + 1)) - set(numbers))


def published(client: pulsar.Client, topic: str) -> Iterator[bytes]:
    """Give every message of a topic from its beginning."""
    reader = client.create_reader(topic, pulsar.MessageId.earliest)
    while reader.has_message_available():
        yield reader.read_next(timeout_millis=10_000).data()
    reader.close()


def gaps_and_repeats(numbers: Iterable[int]) -> tuple[int, int]:
    """Give how many of 1..n are missing, and how many come again."""
    found = Counter(numbers)
    return max(found, default=0) - len(found), sum(found.values()) - len(found)


def compare_published_ticks(account: Account, client: pulsar.Client, topic: str) -> None:
    """Check the published ticks: gapless per instrument and epoch, in order, and together exactly what is stored."""
    by_key: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    content = Counter[tuple[int, int, int]]()
    for data in published(client, topic):
        columns = decode_numbered_ticks(data).columns
        for instrument_id, epoch, sequence, ts_event, price in zip(
            *(columns[name].tolist() for name in ("instrument_id", "epoch", "sequence", "ts_event", "price")),
            strict=True,
        ):
            by_key[instrument_id, epoch].append(sequence)
            content[instrument_id, ts_event, price] += 1
    _count_sequences(account, by_key, "ticks")
    stored = Counter[tuple[int, int, int]]()
    stored.update(rows("SELECT instrument_id, ts_event, price FROM integration_trade"))
    if content != stored:
        account.wrong.append(
            f"published ticks differ from stored ones by {(content - stored).total()} and {(stored - content).total()}"
        )


def compare_published_bars(account: Account, client: pulsar.Client, topic: str) -> None:
    """Check the published bars: gapless per instrument and epoch, in order, each event_id once, all of the table."""
    by_key: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    ids = Counter[str]()
    for data in published(client, topic):
        bar = decode_bar(data)
        by_key[bar.instrument_id, bar.epoch].append(bar.sequence)
        ids[f"bar:{bar.instrument_id}:{bar.source_id}:{bar.timeframe}:{bar.start}:{bar.revision}"] += 1
    _count_sequences(account, by_key, "bars")
    query = "SELECT concat('bar:', instrument_id, ':', source_id, ':', timeframe, ':', start, ':', revision) FROM integration_bar WHERE revision > 0"
    stored = Counter(name for (name,) in rows(query))
    account.repeated += ids.total() - len(ids)
    if ids.keys() != stored.keys():
        account.wrong.append(f"published bars differ from stored ones by {sorted(ids.keys() ^ stored.keys())[:3]}")


def _count_sequences(account: Account, by_key: dict[tuple[int, int], list[int]], what: str) -> None:
    for key, numbers in by_key.items():
        holes, repeats = gaps_and_repeats(numbers)
        account.holes += holes
        account.repeated += repeats
        if numbers != sorted(numbers):
            account.wrong.append(f"{what} of (instrument, epoch) {key} came out of order")


def compare_bars(account: Account) -> None:
    """Recompute every stored bar of a minute, per source and consolidated, from all stored trades."""
    trades = np.array(
        rows("SELECT instrument_id, source_id, ts_event, price, size, conditions FROM integration_trade"), np.int64
    ).reshape(-1, 6)
    assert not (trades[:, 5] & (OFF_MARKET_CONDITIONS | NO_VOLUME_CONDITIONS)).any()
    trades = trades[np.argsort(trades[:, 2], kind="stable")]
    query = (
        "SELECT DISTINCT ON (instrument_id, source_id, start) instrument_id, source_id, start, open, high, low, close, volume, trade_count, turnover"
        " FROM integration_bar WHERE timeframe = '1m' AND revision > 0 ORDER BY instrument_id, source_id, start, revision DESC"
    )
    for instrument_id, source_id, start, *values in rows(query):
        mine = trades[(trades[:, 0] == instrument_id) & (trades[:, 2] >= start) & (trades[:, 2] < start + MINUTE_NS)]
        mine = mine[mine[:, 1] == source_id] if source_id else mine
        prices, sizes = mine[:, 3].tolist(), mine[:, 4].tolist()
        turnover = sum(price * size for price, size in zip(prices, sizes, strict=True))
        expected = (
            [prices[0], max(prices), min(prices), prices[-1], sum(sizes), len(prices), turnover] if prices else []
        )
        found = [*values[:4], int(values[4].scaleb(9)), values[5], int(values[6].scaleb(18))]
        account.bars += 1
        if found != expected:
            account.wrong.append(f"bar {instrument_id}/{source_id}/{start} is {found}, its trades make {expected}")
