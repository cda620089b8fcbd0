"""The second half as a fold: same bytes whatever the rounds, gapless numbers, restored from a checkpoint as if undisturbed."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pytest

from integration import sequencer
from integration.bars import Bar, BarKey
from integration.market.events import decode_bar, decode_numbered_ticks
from integration.market.ticks import QUOTE, TRADE, Ticks
from integration.sequencer import (
    BARS_TOPIC,
    ECHO_TOPIC,
    TICKS_TOPIC,
    CommittedBatch,
    Outgoing,
    Sequenced,
    Sequencer,
    tick_message,
)
from tests.e2e.events import SECOND, TS, reference

MINUTE = 60 * SECOND


class Fold:
    """A sequencer with the table of bars that its loop would keep."""

    def __init__(self, checkpoint: bytes = b"", bars: dict[BarKey, Bar] | None = None) -> None:
        self.bars = {} if bars is None else bars
        self.sequencer = Sequencer(epoch=1, load=self.load, reference=reference, grace_ns=SECOND)
        if checkpoint:
            self.sequencer.restore(checkpoint)

    def load(self, keys: Sequence[BarKey]) -> list[Bar]:
        return [self.bars[key] for key in keys if key in self.bars]

    def round(self, batches: Sequence[CommittedBatch]) -> list[Sequenced]:
        done = [self.sequencer.fold(batch) for batch in batches]
        for item in done:
            self.bars.update({bar.key: bar for bar in (*item.bars, *item.held)})
        self.sequencer.settle()
        return done


def batches(count: int = 40, seed: int = 3) -> list[CommittedBatch]:
    """Make batches of two partitions over some minutes: trades and quotes, late ones, empty ones, delivered bars, a canary."""
    random = np.random.default_rng(seed)
    made, numbers = [], [0, 0]
    for at in range(count):
        partition, rows = at % 2, int(random.integers(0, 12))
        ticks = Ticks.zeros(rows)
        ticks.kind[:] = random.choice([TRADE, QUOTE], rows, p=[0.8, 0.2])
        ticks.instrument_id[:] = random.integers(1, 4, rows)
        ticks.source_id[:], ticks.channel[:], ticks.session[:] = 1, partition, 1
        ticks.sequence[:] = numbers[partition] + 1 + np.cumsum(random.choice([1, 1, 1, 3], rows))
        numbers[partition] = int(ticks.sequence.max(initial=numbers[partition]))
        clock = TS + at * 9 * SECOND
        ticks.ts_event[:] = clock - random.integers(0, 3 * MINUTE, rows) * random.choice([0, 1], rows, p=[0.8, 0.2])
        ticks.ts_publish[:] = clock
        ticks.price[:], ticks.size[:] = random.integers(1, 100, rows) * SECOND, random.integers(1, 9, rows) * SECOND
        ticks.ask_price[:] = np.where(ticks.kind == QUOTE, ticks.price + 1, 0)
        delivered = [(2, 1, "1m", TS - TS % MINUTE, 20458, 5, 9, 4, 6, 7)] if at % 10 == 9 else []
        others = np.array([(1, 9, 1, at + 1, clock)], np.int64) if at % 5 == 0 else np.zeros((0, 5), np.int64)
        made.append(CommittedBatch(100 + at, partition, clock, clock + 7, ticks, others, delivered, at % 13 == 12))
    return made


def flat(done: Sequence[Sequenced]) -> list[Outgoing]:
    return [message for item in done for message in item.messages]


def test_rounds_do_not_change_a_byte() -> None:
    stream = batches()
    whole, single, uneven = Fold(), Fold(), Fold()
    expected = whole.round(stream)
    assert [item for batch in stream for item in single.round([batch])] == expected
    assert uneven.round(stream[:7]) + uneven.round(stream[7:8]) + uneven.round(stream[8:]) == expected
    assert whole.sequencer.snapshot() == single.sequencer.snapshot() == uneven.sequencer.snapshot()
    assert any(item.bars for item in expected)
    assert any(item.gaps.opened for item in expected)


@pytest.mark.parametrize("cut", [0, 1, 9, 20, 39])
@pytest.mark.parametrize("lost", [0, 5])
def test_restore_and_fold_again_is_as_if_undisturbed(cut: int, lost: int) -> None:
    """A checkpoint at `cut`; the process dies `lost` batches later, which are stored and are folded again."""
    stream = batches()
    undisturbed = Fold()
    expected = [item for batch in stream for item in undisturbed.round([batch])]
    first = Fold()
    for batch in stream[:cut]:
        first.round([batch])
    checkpoint = first.sequencer.snapshot()
    for batch in stream[cut : cut + lost]:
        first.round([batch])
    second = Fold(checkpoint, first.bars)
    for batch in stream[cut : cut + lost]:
        second.sequencer.fold(batch)
        second.sequencer.settle()
    rest = [item for batch in stream[cut + lost :] for item in second.round([batch])]
    assert rest == expected[cut + lost :]
    assert second.sequencer.snapshot() == undisturbed.sequencer.snapshot()


def test_every_number_is_gapless() -> None:
    done = Fold().round(batches())
    assert [item.pub_seq for item in done] == list(range(1, len(done) + 1))
    topics: defaultdict[str, list[int]] = defaultdict(list)
    ticks: defaultdict[int, list[int]] = defaultdict(list)
    bars: defaultdict[int, list[int]] = defaultdict(list)
    for message in flat(done):
        topics[message.topic].append(message.number)
        if message.topic == TICKS_TOPIC:
            columns = decode_numbered_ticks(message.payload).columns
            for instrument_id, sequence in zip(
                columns["instrument_id"].tolist(), columns["sequence"].tolist(), strict=True
            ):
                ticks[instrument_id].append(sequence)
        elif message.topic == BARS_TOPIC:
            bar = decode_bar(message.payload)
            bars[bar.instrument_id].append(bar.sequence)
    assert topics.keys() == {TICKS_TOPIC, BARS_TOPIC, ECHO_TOPIC}
    assert len(ticks) == 3
    for numbers in (*topics.values(), *ticks.values(), *bars.values()):
        assert numbers == list(range(1, len(numbers) + 1))


def test_canary_is_echoed_and_in_no_stream() -> None:
    ticks = Ticks.zeros(2)
    ticks.ts_event[:], ticks.instrument_id[:] = [TS, TS + 5], 5
    done = Fold().round([CommittedBatch(1, 1, TS, TS, ticks, np.zeros((0, 5), np.int64), is_canary=True)])
    (message,) = flat(done)
    assert (message.topic, done[0].tick_count, done[0].bars) == (ECHO_TOPIC, 0, [])
    assert message.payload == b'{"batch":1,"ts_event":1767623400000000005}'


def test_delivered_bar_is_published_as_the_next_revision() -> None:
    row = (2, 1, "1m", TS - TS % MINUTE, 20458, 5, 9, 4, 6, 7)
    fold = Fold()
    empty = np.zeros((0, 5), np.int64)
    done = fold.round([CommittedBatch(1, 1, TS, TS, Ticks.zeros(0), empty, [row, row])])
    done += fold.round([CommittedBatch(2, 1, TS, TS, Ticks.zeros(0), empty, [row])])
    events = [decode_bar(message.payload) for message in flat(done)]
    assert [(event.revision, event.reason, event.source, event.open, event.volume) for event in events] == [
        (revision, "delivered", "alpha", 5, 7) for revision in (1, 2, 3)
    ]


def test_a_source_that_sends_trades_and_bars_keeps_two_series() -> None:
    done = Fold().round(batches())
    keys = [(bar.key, bar.revision) for item in done for bar in (*item.bars, *item.held) if bar.revision]
    assert len(set(keys)) == len(keys)
    mine = {bar.source_id for item in done for bar in item.bars if bar.instrument_id == 2 and bar.timeframe == "1m"}
    assert mine == {0, 1, -1}


def test_large_batch_goes_out_in_messages_that_a_broker_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequencer, "TICKS_PER_MESSAGE", 100)
    rows = 250
    ticks = Ticks.zeros(rows)
    ticks.kind[:], ticks.instrument_id[:] = TRADE, np.arange(rows) % 3 + 1
    ticks.ts_event[:], ticks.price[:], ticks.size[:], ticks.source_id[:] = TS + np.arange(rows), 5, 1, 1
    ticks.sequence[:] = np.arange(rows) + 1
    done = Fold().round([CommittedBatch(1, 1, TS, TS, ticks, np.zeros((0, 5), np.int64))])
    parts = [message for message in flat(done) if message.topic == TICKS_TOPIC]
    decoded = [decode_numbered_ticks(part.payload).columns for part in parts]
    assert [len(columns["sequence"]) for columns in decoded] == [100, 100, 50]
    assert np.concatenate([columns["ts_event"] for columns in decoded]).tolist() == ticks.ts_event.tolist()
    for instrument_id in (1, 2, 3):
        numbers = np.concatenate(
            [columns["sequence"][columns["instrument_id"] == instrument_id] for columns in decoded]
        )
        assert numbers.tolist() == list(range(1, len(numbers) + 1))
    # What is stored of a message is enough to build it again.
    assert [tick_message(ticks, part.head, 1, 1, 1) for part in parts] == [part.payload for part in parts]


def test_largest_message_of_a_full_stream_is_below_the_brokers_limit() -> None:
    rows = sequencer.TICKS_PER_MESSAGE
    ticks = Ticks.zeros(rows)
    ticks.instrument_id[:] = 1
    head = np.array([0, 1, 1], "<i8").tobytes()
    assert len(tick_message(ticks, head, 1, 1, 1)) < 4 * 1024 * 1024


def test_checkpoint_of_another_version_is_refused() -> None:
    data = Fold().sequencer.snapshot()
    with pytest.raises(ValueError, match="version"):
        Fold().sequencer.restore(data.replace(b"\xa7version\x01", b"\xa7version\x63"))
