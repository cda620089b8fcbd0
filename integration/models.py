"""The tables of record: reference data, stored ticks, batches and positions, what goes out, what was turned away.

Holds tables and constraints only. Trade and Quote are range-partitioned by `ts_event` in slices that
`integration.storage` makes ahead of the data; they are written by COPY, never by the ORM.
"""

from django.contrib.postgres.constraints import ExclusionConstraint
from django.contrib.postgres.fields import RangeBoundary, RangeOperators
from django.contrib.postgres.indexes import BrinIndex
from django.core.validators import RegexValidator
from django.db import models
from django.db.models import F, Func, Q

from integration.fields import NanosField


class TstzRange(Func):
    """`tstzrange(from, to, '[)')` for the exclusion constraints."""

    function = "TSTZRANGE"
    output_field = models.Field()  # never loaded into Python


class AssetClass(models.TextChoices):
    """One normalized topic each."""

    EQUITIES = "equities", "Equities"
    FIXED_INCOME = "fixed-income", "Fixed income"
    CURRENCIES = "currencies", "Currencies"
    COMMODITIES = "commodities", "Commodities"
    ALTERNATIVE = "alternative", "Alternative data"


class Venue(models.Model):
    """Where instruments trade, by ISO 10383 MIC; its calendar decides session dates and market state."""

    mic = models.CharField("MIC", primary_key=True, max_length=4, validators=[RegexValidator(r"^[A-Z0-9]{4}$")])
    name = models.CharField(max_length=120)
    calendar = models.CharField(
        max_length=40,
        default="24/7",
        help_text="A name known to exchange-calendars (XNYS, CMES, …) or 24/7. Unknown names make every market state “unknown”.",
    )
    timezone = models.CharField(max_length=64, default="UTC")
    is_internal = models.BooleanField(default=False, help_text="Not registered in ISO 10383: simulated or replayed.")

    class Meta:
        ordering = ["mic"]

    def __str__(self) -> str:
        return f"{self.mic} {self.name}"


class Issuer(models.Model):
    """The company or body that issued an instrument."""

    name = models.CharField(max_length=200)
    lei = models.CharField("LEI", max_length=20, blank=True, help_text="ISO 17442")
    country = models.CharField(max_length=2, blank=True, help_text="ISO 3166")

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Instrument(models.Model):
    """What is traded. Its id is permanent and survives every change of symbol."""

    id = models.AutoField(primary_key=True)
    name = models.CharField(max_length=200)
    asset_class = models.CharField(max_length=20, choices=AssetClass)
    issuer = models.ForeignKey(Issuer, null=True, blank=True, on_delete=models.PROTECT)
    price_decimals = models.PositiveSmallIntegerField(default=2, help_text="Decimals shown on pages; storage is exact.")
    allows_negative_price = models.BooleanField(
        default=False, help_text="Spreads, yields, and commodities on bad days."
    )
    is_active = models.BooleanField(default=True)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.CheckConstraint(
                condition=~Q(asset_class="equities", allows_negative_price=True), name="equities_have_no_negative_price"
            ),
            models.CheckConstraint(condition=Q(price_decimals__lte=9), name="at_most_nine_decimals"),
        ]

    def __str__(self) -> str:
        return self.name


class Listing(models.Model):
    """An instrument on a venue, with its currency and price unit over time."""

    instrument = models.ForeignKey(Instrument, on_delete=models.PROTECT, related_name="listings")
    venue = models.ForeignKey(Venue, on_delete=models.PROTECT, related_name="listings")
    currency = models.CharField(max_length=3, validators=[RegexValidator(r"^[A-Z]{3}$")], help_text="ISO 4217")
    price_unit = NanosField(default=1, help_text="0.01 when quoted in pence of the currency.")
    tick_size = NanosField(null=True, blank=True)  # type: ignore[misc]  # one field type serves nullable columns too
    is_primary = models.BooleanField(default=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["instrument", "venue"], name="one_listing_per_venue")]

    def __str__(self) -> str:
        return f"{self.instrument} on {self.venue_id}"


class InstrumentAlias(models.Model):
    """A name of an instrument over time; an event is resolved by the alias that was valid at its `ts_event`."""

    class Scheme(models.TextChoices):
        TICKER = "TICKER", "Ticker (SYMBOL.MIC)"
        ISIN = "ISIN", "ISIN"
        FIGI = "FIGI", "FIGI"
        CUSIP = "CUSIP", "CUSIP"
        SEDOL = "SEDOL", "SEDOL"

    instrument = models.ForeignKey(Instrument, on_delete=models.PROTECT, related_name="aliases")
    scheme = models.CharField(max_length=8, choices=Scheme, default=Scheme.TICKER)
    value = models.CharField(max_length=40)
    valid_from = models.DateTimeField(null=True, blank=True, help_text="Inclusive; empty: always was.")
    valid_to = models.DateTimeField(null=True, blank=True, help_text="Exclusive; empty: still is.")

    class Meta:
        verbose_name_plural = "instrument aliases"
        ordering = ["scheme", "value", "valid_from"]
        constraints = [
            ExclusionConstraint(
                name="one_instrument_per_alias_at_a_time",
                expressions=[
                    ("scheme", RangeOperators.EQUAL),
                    ("value", RangeOperators.EQUAL),
                    (TstzRange("valid_from", "valid_to", RangeBoundary()), RangeOperators.OVERLAPS),
                ],
                violation_error_message="This alias already names an instrument during (part of) that time.",
            ),
            models.CheckConstraint(
                condition=Q(valid_from=None) | Q(valid_to=None) | Q(valid_from__lt=F("valid_to")),
                name="alias_starts_before_it_ends",
                violation_error_message="An alias must start before it ends.",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.scheme}:{self.value}"

    @property
    def wire_text(self) -> str:
        """The instrument text of an event that this alias answers."""
        return self.value if self.scheme == self.Scheme.TICKER else f"{self.scheme}:{self.value}"


class Source(models.Model):
    """Who sends: a code that events claim, the topics it may use, and the limits it is held to."""

    code = models.CharField(max_length=32, unique=True, validators=[RegexValidator(r"^[a-z0-9][a-z0-9-]{0,31}$")])
    name = models.CharField(max_length=120)
    is_simulated = models.BooleanField(default=False)
    is_active = models.BooleanField(default=True)
    sequence_jump_limit = models.BigIntegerField(
        default=1_000_000,
        help_text="A sequence further ahead than this is quarantined, so that nobody can poison the future.",
    )
    future_limit_ms = models.PositiveIntegerField(
        default=5_000, help_text="How far ts_event may lie ahead of the broker's clock."
    )
    ancient_limit_s = models.PositiveIntegerField(default=7 * 86_400, help_text="How far ts_event may lie behind it.")
    crossed_limit_bps = models.PositiveIntegerField(
        default=0, help_text="A bid above the ask by more than this is rejected."
    )

    class Meta:
        ordering = ["code"]

    def __str__(self) -> str:
        return self.code


class SourceBinding(models.Model):
    """A topic that a source may publish on; a claim from any other topic is rejected."""

    source = models.ForeignKey(Source, on_delete=models.CASCADE, related_name="bindings")
    topic = models.CharField(max_length=200, help_text="persistent://market-data/normalized/…")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["source", "topic"], name="source_bound_once_per_topic")]

    def __str__(self) -> str:
        return f"{self.source} on {self.topic}"


class ReferenceVersion(models.Model):
    """One row that triggers raise with every change of reference data, so that consumers know when to recompile."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    version = models.BigIntegerField(default=1)

    def __str__(self) -> str:
        return str(self.version)


class Subscription(models.Model):
    """A topic that consumers read; pausing takes effect within two seconds."""

    topic = models.CharField(max_length=200, unique=True)
    name = models.CharField(
        max_length=80, default="integration", help_text="Subscription name at the broker (type Failover)."
    )
    is_paused = models.BooleanField(default=False)
    pause_reason = models.CharField(max_length=200, blank=True, help_text="Why the service itself has paused it.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["topic"]

    def __str__(self) -> str:
        return self.topic


class Lease(models.Model):
    """Who may write: one row per partition and one for the sequencer. `epoch` fences; the backend can be terminated."""

    name = models.CharField(primary_key=True, max_length=220)
    epoch = models.BigIntegerField(default=0)
    holder = models.CharField(max_length=120, blank=True)
    backend_pid = models.IntegerField(null=True)
    backend_start = models.DateTimeField(null=True)
    acquired_at = models.DateTimeField(null=True)
    renewed_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return f"{self.name} epoch {self.epoch}"


class Position(models.Model):
    """How far a topic partition has been stored. Says where to read from; never what to skip."""

    id = models.AutoField(primary_key=True)
    partition = models.CharField(max_length=220, unique=True)
    subscription = models.ForeignKey(Subscription, on_delete=models.PROTECT, related_name="positions")
    number = models.BigIntegerField(default=0, help_text="Batches stored; the compare-and-swap value.")
    clock = models.BigIntegerField(default=0, help_text="Everything published before this (ns) has been seen.")
    message_id = models.BinaryField(default=b"")
    snapshot = models.BinaryField(default=b"", help_text="Identities known after batch `snapshot_number`.")
    timeline = models.CharField(max_length=40, blank=True, help_text="The database's history that this was written on.")
    snapshot_number = models.BigIntegerField(default=0)
    tick_count = models.BigIntegerField(default=0)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["partition"]

    def __str__(self) -> str:
        return f"{self.partition} #{self.number}"


class Batch(models.Model):
    """What one transaction stored: the accepted ticks as an Arrow payload, and the inputs that decided them."""

    id = models.BigIntegerField(primary_key=True)
    position = models.ForeignKey(Position, on_delete=models.PROTECT, related_name="batches")
    number = models.BigIntegerField(help_text="Gapless within its partition.")
    is_release = models.BooleanField(default=False)
    clock = models.BigIntegerField()
    ts_received = models.BigIntegerField()
    ts_processed = models.BigIntegerField()
    reference_version = models.BigIntegerField()
    message_count = models.IntegerField(default=0)
    tick_count = models.IntegerField(default=0)
    rejected_count = models.IntegerField(default=0)
    parked_count = models.IntegerField(default=0)
    duplicate_count = models.IntegerField(default=0)
    last_message_id = models.BinaryField(default=b"")
    payload = models.BinaryField(default=b"", help_text="Arrow stream of the accepted ticks.")
    extras = models.BinaryField(
        default=b"", help_text="JSON: delivered bars, status changes, identities without a tick row."
    )
    pub_seq = models.BigIntegerField(null=True, help_text="Given by the sequencer; gapless.")

    class Meta:
        verbose_name_plural = "batches"
        constraints = [
            models.UniqueConstraint(fields=["position", "number"], name="batch_number_once_per_partition"),
            models.UniqueConstraint(fields=["pub_seq"], name="pub_seq_once"),
        ]
        indexes = [
            models.Index(fields=["id"], condition=Q(pub_seq=None), name="batch_unnumbered"),
            BrinIndex(fields=["ts_processed"], name="batch_processed"),
        ]

    def __str__(self) -> str:
        return f"batch {self.pk}"


class StoredTick(models.Model):
    """Columns that trades and quotes share. Times are ns UTC; `ts_received` and `ts_processed` are the batch's."""

    pk = models.CompositePrimaryKey("source_id", "channel", "session", "sequence")
    ts_event = models.BigIntegerField()
    ts_publish = models.BigIntegerField()
    instrument_id = models.IntegerField()
    source_id = models.IntegerField()
    channel = models.IntegerField()
    session = models.BigIntegerField()
    sequence = models.BigIntegerField()
    batch_id = models.BigIntegerField()
    conditions = models.IntegerField()
    flags = models.IntegerField()
    session_date = models.DateField()

    class Meta:
        abstract = True
        managed = False

    def __str__(self) -> str:
        return f"{self.source_id}/{self.channel}/{self.session}/{self.sequence}"


class Trade(StoredTick):
    """One trade, correction or cancel."""

    price = NanosField()
    size = NanosField()
    trade_id = models.BigIntegerField()

    class Meta(StoredTick.Meta):
        db_table = "integration_trade"


class Quote(StoredTick):
    """One top-of-book quote."""

    bid = NanosField()
    bid_size = NanosField()
    ask = NanosField()
    ask_size = NanosField()

    class Meta(StoredTick.Meta):
        db_table = "integration_quote"


class Slice(models.Model):
    """One partition of Trade or Quote: the half-open range of `ts_event` it holds, and whether it is finished."""

    id = models.AutoField(primary_key=True)
    table = models.CharField(max_length=16)
    start = models.BigIntegerField()
    end = models.BigIntegerField()
    indexed_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["table", "start"]
        constraints = [models.UniqueConstraint(fields=["table", "start"], name="slice_starts_once")]

    def __str__(self) -> str:
        return f"{self.table} {self.start}"

    @property
    def relation(self) -> str:
        """Name of the PostgreSQL table."""
        return f"integration_{self.table}_{self.start}"


class Bar(models.Model):
    """One revision of a bar; the highest revision is the current one. `source` empty: consolidated over all sources."""

    id = models.BigAutoField(primary_key=True)
    instrument_id = models.IntegerField()
    source_id = models.IntegerField(default=0, help_text="0: consolidated; negative: delivered by that source.")
    timeframe = models.CharField(max_length=3)
    start = models.BigIntegerField()
    end = models.BigIntegerField()
    revision = models.IntegerField()
    reason = models.CharField(max_length=16)
    session_date = models.DateField()
    open = NanosField()
    high = NanosField()
    low = NanosField()
    close = NanosField()
    volume = models.DecimalField(max_digits=38, decimal_places=9)
    turnover = models.DecimalField(max_digits=50, decimal_places=18)
    trade_count = models.BigIntegerField()
    first_ts = models.BigIntegerField()
    last_ts = models.BigIntegerField()
    is_partial = models.BooleanField(default=False)
    is_final = models.BooleanField(default=False)
    pub_seq = models.BigIntegerField(help_text="The batch that closed or revised it.")
    ts_published = models.BigIntegerField(
        default=0, db_default=0, help_text="The event's timestamp; 0: from before it was kept."
    )

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["instrument_id", "timeframe", "source_id", "start", "revision"], name="bar_revision_once"
            ),
            models.CheckConstraint(
                condition=Q(low__lte=F("open"))
                & Q(low__lte=F("close"))
                & Q(high__gte=F("open"))
                & Q(high__gte=F("close")),
                name="bar_invariant",
            ),
        ]

    def __str__(self) -> str:
        return f"bar {self.instrument_id} {self.timeframe} {self.start} r{self.revision}"


class InstrumentStatus(models.Model):
    """A venue's word that an instrument is open, halted, in auction or closed."""

    class Status(models.TextChoices):
        OPEN = "open"
        HALTED = "halted"
        AUCTION = "auction"
        CLOSED = "closed"

    id = models.BigAutoField(primary_key=True)
    instrument = models.ForeignKey(Instrument, on_delete=models.PROTECT, related_name="statuses")
    source = models.ForeignKey(Source, on_delete=models.PROTECT)
    status = models.CharField(max_length=8, choices=Status)
    ts_event = models.BigIntegerField()
    batch_id = models.BigIntegerField()

    class Meta:
        verbose_name_plural = "instrument statuses"
        indexes = [models.Index(fields=["instrument", "-ts_event"], name="status_latest")]

    def __str__(self) -> str:
        return f"{self.instrument_id} {self.status}"


class UpstreamEvent(models.Model):
    """A status change or delivered bar as received: its identity and raw bytes, so that a repeat is told from a conflict."""

    id = models.BigAutoField(primary_key=True)
    source = models.ForeignKey(Source, on_delete=models.PROTECT)
    channel = models.IntegerField()
    session = models.BigIntegerField()
    sequence = models.BigIntegerField()
    instrument = models.ForeignKey(Instrument, on_delete=models.PROTECT)
    ts_event = models.BigIntegerField()
    batch_id = models.BigIntegerField()
    raw = models.BinaryField()

    class Meta:
        indexes = [models.Index(fields=["channel", "session", "sequence"], name="upstream_event_identity")]

    def __str__(self) -> str:
        return f"{self.source_id}/{self.channel}/{self.session}/{self.sequence}"


class SequencerState(models.Model):
    """One row: the gapless counter, the epoch of all numbering, and the checkpoint of instrument numbers and open bars."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    epoch = models.IntegerField(default=1)
    pub_seq = models.BigIntegerField(default=0)
    checkpoint = models.BinaryField(default=b"")
    checkpoint_pub_seq = models.BigIntegerField(default=0)
    timeline = models.CharField(max_length=40, blank=True, help_text="The database's history that the epoch began on.")

    def __str__(self) -> str:
        return f"epoch {self.epoch} pub_seq {self.pub_seq}"


class OutgoingMessage(models.Model):
    """One message for a topic, with its running number. Tick messages keep only what the stored batch does not."""

    id = models.BigAutoField(primary_key=True)
    topic = models.CharField(max_length=200)
    epoch = models.IntegerField()
    number = models.BigIntegerField(help_text="Sequence id at the broker: gapless from 1 per topic and epoch.")
    pub_seq = models.BigIntegerField()
    key = models.CharField(max_length=64, blank=True)
    payload = models.BinaryField(
        default=b"", help_text="The message; for ticks the instrument numbers that head the batch's payload."
    )
    sent_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["topic", "epoch", "number"], name="outgoing_number_once")]
        indexes = [models.Index(fields=["id"], condition=Q(sent_at=None), name="outgoing_unsent")]

    def __str__(self) -> str:
        return f"{self.topic} #{self.number}"


class QuarantinedEvent(models.Model):
    """An event that was turned away or waits, with its raw bytes and the reason; never deleted before its retention."""

    class State(models.TextChoices):
        QUARANTINED = "quarantined", "Quarantined"
        PARKED = "parked", "Parked (waits for an instrument)"
        RELEASE_REQUESTED = "release_requested", "Release requested"
        RELEASED = "released", "Released"
        CONFIRMED_BAD = "confirmed_bad", "Confirmed bad"

    id = models.BigAutoField(primary_key=True)
    position = models.ForeignKey(Position, on_delete=models.PROTECT, related_name="quarantined")
    batch_id = models.BigIntegerField()
    code = models.CharField(max_length=32)
    detail = models.CharField(max_length=400)
    state = models.CharField(max_length=20, choices=State, default=State.QUARANTINED)
    source = models.CharField(max_length=32, blank=True)
    channel = models.IntegerField()
    session = models.BigIntegerField()
    sequence = models.BigIntegerField()
    instrument = models.CharField(max_length=64, blank=True)
    ts_event = models.BigIntegerField(default=0)
    ts_publish = models.BigIntegerField()
    ts_received = models.BigIntegerField()
    raw = models.BinaryField()
    released_batch_id = models.BigIntegerField(null=True)
    note = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        indexes = [
            models.Index(fields=["state", "code", "created_at"], name="quarantine_by_reason"),
            models.Index(fields=["channel", "session", "sequence"], name="quarantine_by_identity"),
            models.Index(
                fields=["position", "id"],
                condition=Q(state__in=["parked", "release_requested"]),
                name="quarantine_waiting",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.code} #{self.pk}"


class Gap(models.Model):
    """Sequences of a channel that never came: opened below the partitions' common watermark, closed when they arrive."""

    class State(models.TextChoices):
        OPEN = "open", "Open"
        FILLED = "filled", "Filled"
        LOST = "lost", "Confirmed lost at the source"

    id = models.BigAutoField(primary_key=True)
    source = models.ForeignKey(Source, on_delete=models.PROTECT, related_name="gaps")
    channel = models.IntegerField()
    session = models.BigIntegerField()
    first = models.BigIntegerField()
    last = models.BigIntegerField()
    state = models.CharField(max_length=8, choices=State, default=State.OPEN)
    detected_at = models.DateTimeField(auto_now_add=True)
    closed_at = models.DateTimeField(null=True)

    class Meta:
        indexes = [models.Index(fields=["source", "channel", "session"], condition=Q(state="open"), name="gap_open")]

    def __str__(self) -> str:
        return f"{self.source_id}/{self.channel}/{self.session} {self.first}-{self.last}"


class Job(models.Model):
    """Work that is not per tick, committed with the batch that made it necessary; Celery only wakes it."""

    class State(models.TextChoices):
        PENDING = "pending", "Pending"
        RUNNING = "running", "Running"
        DONE = "done", "Done"
        FAILED = "failed", "Failed"

    id = models.BigAutoField(primary_key=True)
    kind = models.CharField(max_length=40)
    key = models.CharField(max_length=200, help_text="The same work twice is one row while it waits.")
    state = models.CharField(max_length=8, choices=State, default=State.PENDING)
    attempts = models.PositiveSmallIntegerField(default=0)
    run_after = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    error = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["kind", "key"], condition=Q(state="pending"), name="job_waits_once"),
        ]
        indexes = [models.Index(fields=["run_after"], condition=Q(state__in=["pending", "running"]), name="job_due")]

    @staticmethod
    def enqueue(*, kind: str, key: str) -> None:
        """Write a job row unless the same work waits already; call it in the transaction that makes the work necessary."""
        Job.objects.bulk_create([Job(kind=kind, key=key)], ignore_conflicts=True)

    def __str__(self) -> str:
        return f"{self.kind} {self.key}"


class Alert(models.Model):
    """Something a person should know: opened once per (kind, key), closed when it is over."""

    class Severity(models.TextChoices):
        INFO = "info", "Info"
        WARNING = "warning", "Warning"
        CRITICAL = "critical", "Critical"

    id = models.BigAutoField(primary_key=True)
    kind = models.CharField(max_length=40)
    key = models.CharField(max_length=200)
    severity = models.CharField(max_length=8, choices=Severity, default=Severity.WARNING)
    message = models.CharField(max_length=400)
    opened_at = models.DateTimeField(auto_now_add=True)
    closed_at = models.DateTimeField(null=True, blank=True)
    acknowledged_by = models.CharField(max_length=150, blank=True)
    acknowledged_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["kind", "key"], condition=Q(closed_at=None), name="alert_open_once")
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.key}"


class LakeDay(models.Model):
    """The manifest: a day of trades or quotes that left its slices, and the version of the lake table that holds it.

    What is counted is the lake at `delta_version` for the days named here, and every row that is still in a slice; nothing is in both.
    """

    id = models.AutoField(primary_key=True)
    table = models.CharField(max_length=16)
    day = models.DateField()
    generation = models.BigIntegerField(help_text="Rises with every write of the day; the lake's transaction version.")
    delta_version = models.BigIntegerField()
    row_count = models.BigIntegerField()
    checksum = models.BigIntegerField(help_text="Of all columns of all rows, in any order.")
    archived_at = models.DateTimeField()

    class Meta:
        ordering = ["table", "day"]
        constraints = [models.UniqueConstraint(fields=["table", "day"], name="lake_day_once")]

    def __str__(self) -> str:
        return f"{self.table} {self.day} generation {self.generation}"


class ChannelTally(models.Model):
    """Events of a channel over all batches that were reconciled: what came, and what was decided about it."""

    id = models.BigAutoField(primary_key=True)
    position = models.ForeignKey(Position, on_delete=models.CASCADE, related_name="tallies")
    source_id = models.IntegerField(help_text="0 with channel -2: known by bytes alone.")
    channel = models.IntegerField()
    session = models.BigIntegerField()
    received = models.BigIntegerField(default=0)
    released = models.BigIntegerField(default=0, help_text="Received again by an operator's or an alias's release.")
    ticks = models.BigIntegerField(default=0)
    others = models.BigIntegerField(
        default=0, help_text="Status changes, delivered bars, quarantined and parked events."
    )
    repeats = models.BigIntegerField(default=0)
    refused_claims = models.BigIntegerField(default=0, help_text="Went on under their bytes: conflicts, jumps.")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["position", "source_id", "channel", "session"], name="one_tally_a_channel")
        ]

    def __str__(self) -> str:
        return f"{self.source_id}/{self.channel}/{self.session}"


class Reconciliation(models.Model):
    """How far a partition's batches were held against the tables, and the first difference that was found."""

    position = models.OneToOneField(Position, primary_key=True, on_delete=models.CASCADE, related_name="reconciliation")
    number = models.BigIntegerField(default=0)
    batches_without_tally = models.BigIntegerField(default=0, help_text="Stored by a version that kept none.")
    difference = models.CharField(max_length=400, blank=True)
    checked_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"{self.position_id} #{self.number}"


class Amendment(models.Model):
    """A correction or cancel, and the trade that it means once there is one. Written by the sequencer alone."""

    class State(models.TextChoices):
        WAITING = "waiting", "Waits for its trade"
        APPLIED = "applied", "Applied"
        INCOMPLETE = "incomplete", "Not applied: trades of its minute are missing"

    id = models.BigAutoField(primary_key=True)
    instrument_id = models.IntegerField()
    source_id = models.IntegerField()
    trade_id = models.BigIntegerField()
    channel = models.IntegerField()
    session = models.BigIntegerField()
    sequence = models.BigIntegerField()
    action = models.SmallIntegerField(help_text="1 correct, 2 cancel")
    price = NanosField()
    size = NanosField()
    conditions = models.BigIntegerField()
    ts_event = models.BigIntegerField(help_text="The amendment's own.")
    pub_seq = models.BigIntegerField(help_text="The batch that brought it.")
    row = models.IntegerField(help_text="Its place in that batch.")
    state = models.CharField(max_length=10, choices=State)
    bound_seq = models.BigIntegerField(default=0, help_text="The batch since which its trade is known.")
    trade_ts = models.BigIntegerField(default=0)
    trade_channel = models.IntegerField(default=0)
    trade_session = models.BigIntegerField(default=0)
    trade_sequence = models.BigIntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["source_id", "channel", "session", "sequence"], name="amendment_identity_once"
            ),
        ]
        indexes = [
            models.Index(fields=["instrument_id", "trade_ts"], condition=Q(state="applied"), name="amendment_by_trade"),
            models.Index(fields=["id"], condition=~Q(state="applied"), name="amendment_open"),
        ]

    def __str__(self) -> str:
        return f"{self.get_state_display()}: trade {self.trade_id} of {self.instrument_id}"
