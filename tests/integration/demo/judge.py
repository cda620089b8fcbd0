"""The service's own flow as judge of what the feed says it sent: messages in, totals in the terms of the feed's report out."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from config.pipeline import build
from integration import pipeline
from integration.demo.catalogue import INSTRUMENTS, SOURCES, VENUES
from integration.demo.faults import DUPLICATE, PARKED, STORED
from integration.market.identity import KnownIdentities
from integration.market.reference import FOREVER, AliasSpan, InstrumentFacts, Reference, SourceFacts
from integration.market.sessions import session_table
from integration.market.ticks import TRADE, Message


def reference() -> Reference:
    """Compile what load_demo writes, without a database."""
    numbered = list(enumerate(INSTRUMENTS, 1))
    return Reference(
        1,
        {text: (AliasSpan(0, FOREVER, number),) for number, one in numbered for text in (one.ticker, one.text)},
        {one.code: SourceFacts(number, frozenset(one.asset_classes)) for number, one in enumerate(SOURCES, 1)},
        {
            number: InstrumentFacts(number, one.mic, frozenset({one.currency}), allows_negative=one.allows_negative)
            for number, one in numbered
        },
        {venue.mic: session_table("24/7", last_year=2030) for venue in VENUES},
    )


def judge(partitions: Iterable[tuple[str, Sequence[Message]]]) -> list[pipeline.Outcome]:
    """Run the messages of each partition, given with its asset class, through the flow as one batch."""
    slots, facts = build(), reference()
    return [
        pipeline.process(
            pipeline.Request(asset_class, messages, facts),
            pipeline.PartitionState(KnownIdentities(), slots.new_screen_state()),
            slots,
            lambda unsure: [None] * len(unsure),
        )
        for asset_class, messages in partitions
    ]


def totals(outcomes: Iterable[pipeline.Outcome]) -> Counter[str]:
    """Count what became of the events, as the report's `outcomes` do."""
    found: Counter[str] = Counter()
    for outcome in outcomes:
        found[STORED] += len(outcome.ticks) + len(outcome.sides)
        found[DUPLICATE] += outcome.duplicate_count
        found[PARKED] += len(outcome.parked)
        found.update(refused.rejection.code for refused in outcome.refused)
    return +found


def sums(outcomes: Iterable[pipeline.Outcome]) -> dict[str, dict[str, int]]:
    """Sum what was stored per instrument, as the report's `instruments` do."""
    stored: defaultdict[str, Counter[str]] = defaultdict(Counter)
    names = ("instrument_id", "kind", "price", "ask_price", "size", "ask_size")
    for outcome in outcomes:
        columns = [getattr(outcome.ticks, name).tolist() for name in names]
        for instrument, kind, price, ask_price, size, ask_size in zip(*columns, strict=True):
            mine = stored[INSTRUMENTS[instrument - 1].text]
            mine["trade" if kind == TRADE else "quote"] += 1
            mine["price_sum"] += price + ask_price
            mine["size_sum"] += size + ask_size
    return {text: dict(mine) for text, mine in stored.items()}
