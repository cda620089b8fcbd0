"""The app's Prometheus objects and the functions that the loops call once a batch; never once a tick.

Labels are topics, stages, reason codes and job kinds: small closed sets, never a symbol. docs/operations.md has a line for
each name (a test holds both together). Gauges that PostgreSQL knows better are computed at scrape, in `distribution.probes`.
"""

from collections.abc import Mapping
from typing import Final

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series per counter that says when this process began; nobody asks

_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCH_TICKS: Final = (1, 10, 50, 100, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 65_536)
_JOB_SECONDS: Final = (0.01, 0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 1_800.0)

BATCHES_STORED = Counter("mdi_batches_stored", "Batches committed by consumers.", ["topic"])
TICKS_STORED = Counter("mdi_ticks_stored", "Trades and quotes committed by consumers.", ["topic"])
EVENTS_REJECTED = Counter("mdi_events_rejected", "Events turned away into quarantine.", ["topic"])
EVENTS_DUPLICATE = Counter("mdi_events_duplicate", "Events known before, with the same content.", ["topic"])
EVENTS_PARKED = Counter("mdi_events_parked", "Events that wait for an instrument.", ["topic"])
BATCH_TICKS = Histogram("mdi_batch_ticks", "Ticks in a committed batch.", ["topic"], buckets=_BATCH_TICKS)
STAGE_SECONDS = Histogram("mdi_stage_duration_seconds", "Time a batch spent in one stage.", ["stage"], buckets=_SECONDS)
EVENTS_QUARANTINED = Counter("mdi_events_quarantined", "Events turned away, by reason code.", ["code"])
QUEUE_MESSAGES = Gauge(
    "mdi_receive_queue_messages", "Messages received and not yet in a batch.", multiprocess_mode="livesum"
)
BATCHES_SEQUENCED = Counter("mdi_batches_sequenced", "Batches numbered by the sequencer.")
TICKS_SEQUENCED = Counter("mdi_ticks_sequenced", "Ticks numbered by the sequencer.")
BARS_WRITTEN = Counter("mdi_bars_written", "Bar revisions written by the sequencer.")
SEQUENCE_SECONDS = Histogram("mdi_sequence_duration_seconds", "Time of one sequencer transaction.", buckets=_SECONDS)
MESSAGES_PUBLISHED = Counter("mdi_messages_published", "Messages the broker has acknowledged.")
BYTES_PUBLISHED = Counter("mdi_published_bytes", "Their payload bytes.")
JOBS_FINISHED = Counter(
    "mdi_jobs_finished", "Job attempts that ended, by outcome (done, retried, failed).", ["kind", "outcome"]
)
JOB_SECONDS = Histogram("mdi_job_duration_seconds", "Time of one job attempt.", ["kind"], buckets=_JOB_SECONDS)

# Gauges that PostgreSQL knows better than any process; `distribution.probes` computes them at scrape. name -> (help, labels)
SCRAPED: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "mdi_database_up": ("1 when PostgreSQL answered this scrape.", ()),
    "mdi_partition_stored_age_seconds": ("Age of the newest message that is stored, by partition.", ("partition",)),
    "mdi_partition_lease_age_seconds": (
        "Time since the lease of a partition was renewed, where somebody holds it.",
        ("partition",),
    ),
    "mdi_partition_waiting_messages": ("Messages waiting at the broker, where it could be asked.", ("partition",)),
    "mdi_partition_batches": ("Position of a partition: batches stored.", ("partition",)),
    "mdi_sequencer_lease_age_seconds": ("Time since the sequencer renewed its lease.", ()),
    "mdi_unnumbered_batches": ("Batches that wait for the sequencer.", ()),
    "mdi_unsent_messages": ("Outgoing messages that the broker has not acknowledged.", ()),
    "mdi_unpublished_age_seconds": ("Age of the oldest batch or message not yet sent; 0 when none waits.", ()),
    "mdi_quarantine_waiting_events": ("Events that wait, by reason code and state.", ("code", "state")),
    "mdi_quarantine_oldest_age_seconds": ("Age of the oldest of them.", ("code", "state")),
    "mdi_open_gaps": ("Gaps that are open, by source.", ("source",)),
    "mdi_open_alerts": ("Alerts that are open, by severity.", ("severity",)),
    "mdi_jobs": ("Job rows, by state.", ("state",)),
    "mdi_paused_subscriptions": ("Subscriptions that an operator has paused.", ()),
    "mdi_canary_age_seconds": ("Age of the newest canary at the end of the path.", ()),
}


def record_batch(
    topic: str, ticks: int, rejected: int, duplicates: int, parked: int, stage_seconds: Mapping[str, float]
) -> None:
    """Count one committed batch of a topic; `stage_seconds` maps the stage's name to its duration in seconds."""
    BATCHES_STORED.labels(topic).inc()
    BATCH_TICKS.labels(topic).observe(ticks)
    for counter, amount in (
        (TICKS_STORED, ticks),
        (EVENTS_REJECTED, rejected),
        (EVENTS_DUPLICATE, duplicates),
        (EVENTS_PARKED, parked),
    ):
        if amount:
            counter.labels(topic).inc(amount)
    for stage, seconds in stage_seconds.items():
        STAGE_SECONDS.labels(stage).observe(seconds)


def record_quarantined(code: str, n: int) -> None:
    """Count `n` events turned away for one reason code."""
    EVENTS_QUARANTINED.labels(code).inc(n)


def set_queue_depth(n: int) -> None:
    """Tell how many received messages wait for a batch in this process."""
    QUEUE_MESSAGES.set(n)


def record_sequenced(batches: int, ticks: int, bars: int, seconds: float) -> None:
    """Count one committed transaction of the sequencer."""
    BATCHES_SEQUENCED.inc(batches)
    TICKS_SEQUENCED.inc(ticks)
    BARS_WRITTEN.inc(bars)
    SEQUENCE_SECONDS.observe(seconds)


def record_published(messages: int, bytes: int) -> None:  # noqa: A002  # the callers' keyword; nothing here needs the builtin
    """Count messages that the broker acknowledged, and their payload bytes."""
    MESSAGES_PUBLISHED.inc(messages)
    BYTES_PUBLISHED.inc(bytes)


def record_job(kind: str, outcome: str, seconds: float) -> None:
    """Count one ended attempt of a job; outcome is done, retried or failed."""
    JOBS_FINISHED.labels(kind, outcome).inc()
    JOB_SECONDS.labels(kind).observe(seconds)
