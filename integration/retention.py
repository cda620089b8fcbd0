"""What may go, and when: messages, batches, quarantine, jobs, alerts and days in the lake, each by its own setting; 0 keeps for ever.

Nothing goes that waits, is unsent, or that a start of a consumer or of the sequencer reads. Of a batch that made bars the row stays
without its payload: it says when they became known. Quarantined events go to the lake first.
"""

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

import pyarrow as pa
import structlog
from django.conf import settings
from django.db import connection, transaction
from django.db.models import F, QuerySet, Subquery
from django.utils import timezone

from integration import lake
from integration.models import Alert, Batch, Job, LakeDay, OutgoingMessage, QuarantinedEvent, SequencerState

log = structlog.get_logger(__name__)

QUARANTINE: Final = "quarantine"
_PIECE: Final = 2_000  # rows a statement deletes, so that none holds locks for long
_SECONDS: Final = 1_800  # what is left after this goes the next night
_SETTLED: Final = (QuarantinedEvent.State.RELEASED, QuarantinedEvent.State.CONFIRMED_BAD)
# Ticks carry the times of their batch into the lake: batches wait until their days have moved, late ones a night longer.
_AFTER_HOT_DAYS: Final = 2


def run(now: datetime | None = None) -> dict[str, int]:
    """Delete what is older than the settings allow, in pieces; give the number of rows by kind. Runs outside of transactions."""
    moment, days = now or timezone.now(), settings.MDI
    batch_days = days.retention_batch_days and max(days.retention_batch_days, days.hot_days + _AFTER_HOT_DAYS)
    until = time.monotonic() + _SECONDS
    work: tuple[tuple[str, int, Callable[[datetime], int]], ...] = (
        ("messages", days.retention_outgoing_days, lambda before: _in_pieces(old_messages(before), until)),
        ("batches", batch_days, lambda before: _empty_batches(before, until)),
        ("quarantine", days.retention_quarantine_days, lambda before: _archive_quarantine(before, until)),
        ("jobs", days.retention_job_days, lambda before: _in_pieces(old_jobs(before), until)),
        ("alerts", days.retention_job_days, lambda before: _in_pieces(old_alerts(before), until)),
        ("lake_days", days.retention_lake_days, _drop_lake_days),
    )
    done = {name: act(moment - timedelta(days=keep)) for name, keep, act in work if keep}
    log.info("retention", **done)
    return done


# -- what is old ------------------------------------------------------------------------------------------------------


def old_messages(before: datetime) -> QuerySet[OutgoingMessage]:
    """Messages that the broker has stored."""
    return OutgoingMessage.objects.filter(sent_at__lt=before)


def old_batches(before: datetime) -> QuerySet[Batch]:
    """Batches that no start needs: numbered, below the sequencer's checkpoint, in their partition's snapshot, all messages sent."""
    state = SequencerState.objects.filter(pk=1).values("checkpoint_pub_seq")[:1]
    floor = OutgoingMessage.objects.filter(sent_at=None).order_by("pub_seq").values_list("pub_seq", flat=True).first()
    old = Batch.objects.filter(
        pub_seq__isnull=False,
        pub_seq__lt=Subquery(state),
        number__lt=F("position__snapshot_number"),
        ts_processed__lt=int(before.timestamp() * 1e9),
    )
    return old if floor is None else old.filter(pub_seq__lt=floor)


def old_quarantine(before: datetime) -> QuerySet[QuarantinedEvent]:
    """Events that somebody has decided about."""
    return QuarantinedEvent.objects.filter(state__in=_SETTLED, updated_at__lt=before)


def old_jobs(before: datetime) -> QuerySet[Job]:
    """Jobs that are done; failed ones wait for a person."""
    return Job.objects.filter(state=Job.State.DONE, finished_at__lt=before)


def old_alerts(before: datetime) -> QuerySet[Alert]:
    """Alerts whose cause is gone."""
    return Alert.objects.filter(closed_at__lt=before)


# -- letting go -------------------------------------------------------------------------------------------------------


def _in_pieces(rows: QuerySet[Any], until: float) -> int:
    total = 0
    while time.monotonic() < until and (ids := list(rows.order_by("pk").values_list("pk", flat=True)[:_PIECE])):
        rows.filter(pk__in=ids).delete()
        total += len(ids)
    return total


def _empty_batches(before: datetime, until: float) -> int:
    """Delete batches; of those that made bars keep the row, since a bar's time of knowledge is its batch's."""
    rows, total, last = old_batches(before), 0, 0
    while time.monotonic() < until:
        found = list(rows.filter(pub_seq__gt=last).order_by("pub_seq").values_list("pub_seq", flat=True)[:_PIECE])
        if not found:
            break
        first, last = int(found[0] or 0), int(found[-1] or 0)
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(
                "SELECT DISTINCT pub_seq FROM integration_bar WHERE pub_seq BETWEEN %s AND %s", [first, last]
            )
            told = {pub_seq for (pub_seq,) in cursor.fetchall()}
            here = rows.filter(pub_seq__in=found)
            kept = here.filter(pub_seq__in=told).exclude(payload=b"", extras=b"").update(payload=b"", extras=b"")
            gone, _ = here.exclude(pub_seq__in=told).delete()
        total += kept + gone
    return total


def _archive_quarantine(before: datetime, until: float) -> int:
    """Write decided events to the lake, then delete them; what a crash has written already is not written again."""
    total = 0
    while time.monotonic() < until:
        events = list(old_quarantine(before).order_by("pk")[:_PIECE])
        if not events:
            break
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('mdi quarantine'))")
            lake.append_once(QUARANTINE, _quarantine_rows(events))
            old_quarantine(before).filter(pk__in=[event.pk for event in events]).delete()
        total += len(events)
    return total


def _quarantine_rows(events: list[QuarantinedEvent]) -> pa.Table:
    names = [field.attname for field in QuarantinedEvent._meta.concrete_fields]  # noqa: SLF001 - documented
    kinds = {
        "BigAutoField": pa.int64(), "BigIntegerField": pa.int64(), "IntegerField": pa.int32(), "AutoField": pa.int64(),
        "ForeignKey": pa.int64(), "BinaryField": pa.binary(), "DateTimeField": pa.timestamp("us", "UTC"),
    }  # fmt: skip
    columns = {
        field.attname: pa.array(
            [_plain(getattr(event, field.attname)) for event in events],
            kinds.get(field.get_internal_type(), pa.string()),
        )
        for field in QuarantinedEvent._meta.concrete_fields  # noqa: SLF001 - documented
    }
    columns["month"] = pa.array([f"{event.created_at:%Y-%m}" for event in events])
    return pa.table(columns).select([*names, "month"])


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


def _drop_lake_days(before: datetime) -> int:
    """Take days out of the manifest, then out of the lake; readers that are on them keep their files for a week."""
    old = LakeDay.objects.filter(day__lt=before.date())
    tables = set(old.values_list("table", flat=True))
    dropped, _ = old.delete()
    for table in tables:
        lake.delete_before(table, before.date())
    return dropped
