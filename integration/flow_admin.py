"""The desk for the flow: subscriptions, batches, outgoing messages, gaps, jobs, alerts; and the buttons of every part of the desk.

What a process of ours writes is read-only here: an edit would break the exactly-once effect. What a person may decide is
a button, a POST that calls one service.
"""

import time
from collections.abc import Callable
from typing import Any, ClassVar, Final, NamedTuple

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from unfold.admin import ModelAdmin
from unfold.decorators import display
from unfold.paginator import InfinitePaginator

from integration import alerts, broker, selectors, services
from integration.display import age_text, moment_text, rate_text, since_text, topic_text
from integration.models import Alert, Batch, Gap, Job, OutgoingMessage, Subscription

_PAGE: Final = 100
STATE_LABELS: Final = {
    "Paused": "warning",
    "Reading": "success",
    "Quiet": "info",
    "No consumer": "danger",
    "Not known": "warning",
}


class PanelMixin:
    """A page with more than the object's own fields: the templates around its form get what `panel` gives."""

    def panel(self, request: HttpRequest, obj: Any) -> dict[str, Any]:
        """Give the context of the page's templates; `obj` is None where an object is added."""
        raise NotImplementedError

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        obj = self.get_object(request, object_id) if object_id else None  # type: ignore[attr-defined]
        context = {**(extra_context or {}), **self.panel(request, obj)}
        return super().changeform_view(request, object_id, form_url, context)  # type: ignore[misc,no-any-return]


class ReadOnlyAdmin(ModelAdmin):  # type: ignore[misc]
    """Rows that a process of ours writes: shown, never edited."""

    show_full_result_count = False
    list_per_page = _PAGE

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Say whether the user may take this model's decisions, which is the right to change it."""
        return bool(request.user.has_perm(f"integration.change_{self.opts.model_name}"))


class Decision(NamedTuple):
    """A button: its title, what it does in words, what is said afterwards (`{counted}`: how many of what), and its look."""

    title: str
    words: str
    done: str
    nothing: str = ""
    look: str = "primary"


class DecisionMixin(PanelMixin):
    """Buttons on an object's page and actions on the list, each a POST that calls one service and says what came of it."""

    decisions: ClassVar[dict[str, Decision]] = {}  # by address below the object's page
    change_form_outer_before_template = "admin/integration/decisions.html"
    model: Any
    opts: Any
    admin_site: Any
    message_user: Any

    def offered(self, obj: Any) -> list[str]:
        """Name the decisions that make sense for this object now."""
        return list(self.decisions)

    def decide(self, name: str, objects: QuerySet[Any], request: HttpRequest) -> int:
        """Take a decision by calling its service; give how many objects it changed: 0 when all were decided before."""
        raise NotImplementedError

    def take(self, request: HttpRequest, name: str, objects: QuerySet[Any]) -> None:
        """Take a decision about objects and say what came of it."""
        self.say(request, name, self.decide(name, objects, request))

    def say(self, request: HttpRequest, name: str, count: int) -> None:
        """Tell the user what a decision changed."""
        decision = self.decisions[name]
        if count:
            noun = self.opts.verbose_name if count == 1 else self.opts.verbose_name_plural
            self.message_user(request, decision.done.format(counted=f"{count:,} {noun}"), messages.SUCCESS)
        else:
            nothing = decision.nothing or f"“{decision.title}” changed nothing: somebody was faster."
            self.message_user(request, nothing, messages.WARNING)

    def demand(self, request: HttpRequest, *methods: str) -> None:
        """Refuse who may not decide (403) and other methods than these (404)."""
        if not self.has_operate_permission(request):  # type: ignore[attr-defined]
            raise PermissionDenied
        if request.method not in methods:
            raise Http404(f"this address answers {' and '.join(methods)} only")

    def address(self, name: str, obj: Any) -> str:
        """Give the address that a decision about an object is posted to."""
        return reverse(f"admin:{self._url_name(name)}", args=[obj.pk])

    def get_urls(self) -> list[URLPattern]:
        own = [
            path(f"<path:object_id>/{name}/", self.admin_site.admin_view(self._view(name)), name=self._url_name(name))
            for name in self.decisions
        ]
        return [*own, *super().get_urls()]  # type: ignore[misc]

    def panel(self, request: HttpRequest, obj: Any) -> dict[str, Any]:
        if obj is None or not self.has_operate_permission(request):  # type: ignore[attr-defined]
            return {}
        offered = [(self.decisions[name], self.address(name, obj)) for name in self.offered(obj)]
        return {"decisions": [{**decision._asdict(), "url": url} for decision, url in offered]}

    def _url_name(self, name: str) -> str:
        return f"integration_{self.opts.model_name}_{name.replace('-', '_')}"

    def _view(self, name: str) -> Callable[..., HttpResponse]:
        def view(request: HttpRequest, object_id: str) -> HttpResponse:
            self.demand(request, "POST")
            obj = self.get_object(request, object_id)  # type: ignore[attr-defined]
            if obj is None:
                raise Http404(f"no {self.opts.verbose_name} has this id, was {object_id}")
            self.take(request, name, self.model.objects.filter(pk=obj.pk))
            return HttpResponseRedirect(reverse(f"admin:integration_{self.opts.model_name}_change", args=[object_id]))

        return view


@admin.register(Subscription)
class SubscriptionAdmin(DecisionMixin, ReadOnlyAdmin):
    """Topics that consumers read: position, lag, rate, lease; pause and resume."""

    list_display = ("topic_short", "state", "broker_lag", "rate", "seen_until", "holders", "stored")
    search_fields = ("topic",)
    search_help_text = "Topic"
    fields = ("topic", "name", "state", "created_at")
    readonly_fields = ("state",)
    change_form_outer_after_template = "admin/integration/subscription/partitions.html"
    actions = ("pause_selected", "resume_selected")
    decisions: ClassVar = {
        "pause": Decision(
            "Pause",
            "Consumers stop reading within two seconds. The broker keeps what comes.",
            "{counted} paused: consumers stop within two seconds.",
        ),
        "resume": Decision(
            "Resume",
            "Consumers read on from the stored position. Nothing is skipped.",
            "{counted} resumed: consumers read on within two seconds.",
        ),
    }

    def offered(self, obj: Subscription) -> list[str]:
        return ["resume"] if obj.is_paused else ["pause"]

    def decide(self, name: str, objects: QuerySet[Subscription], request: HttpRequest) -> int:
        act = services.pause_subscription if name == "pause" else services.resume_subscription
        return sum(act(subscription=one, actor=request.user) for one in objects)  # type: ignore[arg-type]  # staff only

    @admin.action(description="Pause selected subscriptions", permissions=["operate"])
    def pause_selected(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> None:
        self.take(request, "pause", queryset)

    @admin.action(description="Resume selected subscriptions", permissions=["operate"])
    def resume_selected(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> None:
        self.take(request, "resume", queryset)

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        changelist = super().get_changelist_instance(request)
        # On the rows, not on this object: one admin serves all threads.
        flows = selectors.partition_flows(time.time_ns())
        for subscription in changelist.result_list:
            vars(subscription)["flows"] = [flow for flow in flows if flow.subscription_id == subscription.pk]
        return changelist

    def panel(self, request: HttpRequest, obj: Subscription | None) -> dict[str, Any]:
        context = super().panel(request, obj)
        if obj is None:
            return context
        lags = broker.backlog(obj.topic, obj.name)
        return {
            **context,
            "partitions": [
                {
                    "name": topic_text(flow.partition),
                    "partition": flow.partition,
                    "number": f"{flow.number:,}",
                    "lag": "–" if lags is None else f"{lags.get(flow.partition, 0):,}",
                    "clock": age_text(flow.clock_age_s),
                    "rate": rate_text(flow.ticks_per_s),
                    "holder": flow.holder or "nobody",
                    "epoch": flow.epoch,
                    "lease": age_text(flow.lease_age_s),
                }
                for flow in self._of(obj)
            ],
        }

    def _of(self, subscription: Subscription) -> list[selectors.PartitionFlow]:
        if "flows" not in vars(subscription):
            flows = selectors.partition_flows(time.time_ns())
            vars(subscription)["flows"] = [flow for flow in flows if flow.subscription_id == subscription.pk]
        return list(vars(subscription)["flows"])

    @display(description="Topic", ordering="topic")
    def topic_short(self, subscription: Subscription) -> str:
        return format_html('<span title="{}">{}</span>', subscription.topic, topic_text(subscription.topic))

    @display(description="State", label=STATE_LABELS)
    def state(self, subscription: Subscription) -> str:
        if subscription.is_paused:
            return "Paused"
        ages = [flow.lease_age_s for flow in self._of(subscription) if flow.lease_age_s is not None]
        if any(age <= alerts.LEASE_LIMIT_S for age in ages):
            return "Reading"
        # A topic without messages needs no lease; one with messages and without a lease is read by nobody.
        lags = broker.backlog(subscription.topic, subscription.name)
        if lags is None:
            return "Not known"
        return "No consumer" if sum(lags.values()) else "Quiet"

    @display(description="Waiting at broker (messages)")
    def broker_lag(self, subscription: Subscription) -> str:
        lags = broker.backlog(subscription.topic, subscription.name)
        return "not known" if lags is None else f"{sum(lags.values()):,}"

    @display(description="Rate (ticks/s)")
    def rate(self, subscription: Subscription) -> str:
        return rate_text(sum(flow.ticks_per_s for flow in self._of(subscription)))

    @display(description="Newest stored")
    def seen_until(self, subscription: Subscription) -> str:
        ages = [flow.clock_age_s for flow in self._of(subscription) if flow.clock_age_s is not None]
        return f"{age_text(min(ages))} ago" if ages else "nothing yet"

    @display(description="Lease")
    def holders(self, subscription: Subscription) -> str:
        names = sorted({flow.holder for flow in self._of(subscription) if flow.holder})
        return ", ".join(names) or "nobody"

    @display(description="Position (batches)")
    def stored(self, subscription: Subscription) -> str:
        return f"{sum(flow.number for flow in self._of(subscription)):,}"


@admin.register(Batch)
class BatchAdmin(ReadOnlyAdmin):
    """What each transaction stored."""

    paginator = InfinitePaginator
    list_display = (
        "id",
        "partition",
        "number",
        "messages",
        "ticks",
        "rejected",
        "parked",
        "duplicates",
        "published_as",
        "stored_at",
    )
    list_filter = ("is_release", ("position", admin.RelatedOnlyFieldListFilter))
    list_select_related = ("position",)
    search_fields = ("=id", "=pub_seq")
    search_help_text = "Batch id or publication number"
    ordering = ("-id",)
    fields = (
        ("id", "partition", "number"), ("pub_seq", "is_release", "reference_version"),
        ("message_count", "tick_count"), ("rejected_count", "parked_count", "duplicate_count"),
        ("received_at", "stored_at_full", "clock_at"), ("payload_size", "trace"),
    )  # fmt: skip
    readonly_fields = ("partition", "received_at", "stored_at_full", "clock_at", "payload_size", "trace")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Batch]:
        found: QuerySet[Batch] = super().get_queryset(request)
        return found.defer("payload", "extras", "position__snapshot", "position__message_id")

    @display(description="Partition")
    def partition(self, batch: Batch) -> str:
        return topic_text(batch.position.partition)

    @display(description="Messages", ordering="message_count")
    def messages(self, batch: Batch) -> str:
        return f"{batch.message_count:,}"

    @display(description="Ticks", ordering="tick_count")
    def ticks(self, batch: Batch) -> str:
        return f"{batch.tick_count:,}"

    @display(description="Rejected", ordering="rejected_count")
    def rejected(self, batch: Batch) -> str:
        return f"{batch.rejected_count:,}"

    @display(description="Parked", ordering="parked_count")
    def parked(self, batch: Batch) -> str:
        return f"{batch.parked_count:,}"

    @display(description="Repeats", ordering="duplicate_count")
    def duplicates(self, batch: Batch) -> str:
        return f"{batch.duplicate_count:,}"

    @display(description="Published as", empty_value="waits")
    def published_as(self, batch: Batch) -> int | None:
        return batch.pub_seq

    @display(description="Stored")
    def stored_at(self, batch: Batch) -> str:
        return f"{age_text((time.time_ns() - batch.ts_processed) / 1e9)} ago"

    @display(description="Stored (before commit)")
    def stored_at_full(self, batch: Batch) -> str:
        return moment_text(batch.ts_processed)

    @display(description="Received")
    def received_at(self, batch: Batch) -> str:
        return moment_text(batch.ts_received)

    @display(description="Partition's clock")
    def clock_at(self, batch: Batch) -> str:
        return moment_text(batch.clock)

    @display(description="Payload")
    def payload_size(self, batch: Batch) -> str:
        return f"{len(batch.payload):,} bytes"

    @display(description="Its events")
    def trace(self, batch: Batch) -> str:
        url = f"{reverse('trace_event')}?around={batch.clock}"
        return format_html('<a href="{}">Trace an event of this time</a>', url)


@admin.register(OutgoingMessage)
class OutgoingMessageAdmin(ReadOnlyAdmin):
    """What goes out, with its running number."""

    paginator = InfinitePaginator
    list_display = ("id", "topic_short", "epoch", "number", "pub_seq", "key", "sent")
    list_filter = ("topic", ("sent_at", admin.EmptyFieldListFilter))
    search_fields = ("=number", "=pub_seq", "=key")
    search_help_text = "Running number, publication number or key"
    ordering = ("-id",)
    fields = (("id", "topic"), ("epoch", "number", "pub_seq"), "key", ("created_at", "sent_at"), "payload_size")
    readonly_fields = ("payload_size",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[OutgoingMessage]:
        found: QuerySet[OutgoingMessage] = super().get_queryset(request)
        return found.defer("payload")

    @display(description="Topic")
    def topic_short(self, message: OutgoingMessage) -> str:
        return format_html('<span title="{}">{}</span>', message.topic, topic_text(message.topic))

    @display(description="Sent", label={"sent": "success", "waits": "warning"})
    def sent(self, message: OutgoingMessage) -> str:
        return "sent" if message.sent_at else "waits"

    @display(description="Payload")
    def payload_size(self, message: OutgoingMessage) -> str:
        return f"{len(message.payload):,} bytes"


@admin.register(Gap)
class GapAdmin(DecisionMixin, ReadOnlyAdmin):
    """Sequences that never came."""

    list_display = ("source", "channel", "session", "missing", "first", "last", "state_label", "detected")
    list_filter = ("state", ("source", admin.RelatedOnlyFieldListFilter))
    list_select_related = ("source",)
    search_fields = ("source__code",)
    search_help_text = "Source"
    ordering = ("-id",)
    fields = (("source", "channel", "session"), ("first", "last", "missing"), ("state", "detected_at", "closed_at"))
    readonly_fields = ("missing",)
    decisions: ClassVar = {
        "confirm-lost": Decision(
            "Confirm as lost", "The source says that these sequences will never come. The gap is closed; it stays in the ledger.", "The gap is closed as lost.",
        ),
    }  # fmt: skip

    def offered(self, obj: Gap) -> list[str]:
        return ["confirm-lost"] if obj.state == Gap.State.OPEN else []

    def decide(self, name: str, objects: QuerySet[Gap], request: HttpRequest) -> int:
        return sum(services.confirm_gap_lost(gap=one, actor=request.user) for one in objects)  # type: ignore[arg-type]  # staff only

    @display(description="Missing")
    def missing(self, gap: Gap) -> str:
        return f"{gap.last - gap.first + 1:,}"

    @display(description="State", ordering="state", label={"Open": "warning", "Filled": "success", "Lost": "danger"})
    def state_label(self, gap: Gap) -> str:
        return Gap.State(gap.state).name.capitalize()

    @display(description="Detected", ordering="detected_at")
    def detected(self, gap: Gap) -> str:
        return f"{since_text(gap.detected_at, timezone.now())} ago"


@admin.register(Job)
class JobAdmin(DecisionMixin, ReadOnlyAdmin):
    """Work that is not per tick."""

    list_display = ("kind", "key", "state_label", "attempts", "asked", "took", "error_short")
    list_filter = ("state", "kind")
    search_fields = ("key", "kind")
    search_help_text = "Kind or key"
    ordering = ("-id",)
    fields = (
        ("kind", "key"),
        ("state", "attempts"),
        ("created_at", "run_after"),
        ("started_at", "finished_at"),
        "error",
    )
    decisions: ClassVar = {
        "retry": Decision(
            "Run again",
            "The job starts again from its first attempt within seconds.",
            "The job will run again within seconds.",
        )
    }

    def offered(self, obj: Job) -> list[str]:
        return ["retry"] if obj.state == Job.State.FAILED else []

    def decide(self, name: str, objects: QuerySet[Job], request: HttpRequest) -> int:
        return sum(services.retry_job(job=one, actor=request.user) for one in objects)  # type: ignore[arg-type]  # staff only

    @display(
        description="State",
        ordering="state",
        label={"Pending": "info", "Running": "primary", "Done": "success", "Failed": "danger"},
    )
    def state_label(self, job: Job) -> str:
        return Job.State(job.state).label

    @display(description="Asked for", ordering="created_at")
    def asked(self, job: Job) -> str:
        return f"{since_text(job.created_at, timezone.now())} ago"

    @display(description="Took")
    def took(self, job: Job) -> str:
        return (
            age_text((job.finished_at - job.started_at).total_seconds()) if job.finished_at and job.started_at else "–"
        )

    @display(description="Error")
    def error_short(self, job: Job) -> str:
        return job.error[:80] or "–"


@admin.register(Alert)
class AlertAdmin(DecisionMixin, ReadOnlyAdmin):
    """What a person should know; an alert closes by itself when its cause is gone."""

    list_display = ("kind", "key", "severity_label", "message", "opened", "state_label", "acknowledged_by")
    list_filter = ("severity", "kind", ("closed_at", admin.EmptyFieldListFilter))
    search_fields = ("kind", "key", "message")
    search_help_text = "Kind, key or message"
    ordering = ("-id",)
    fields = (
        ("kind", "key", "severity"),
        "message",
        ("opened_at", "closed_at"),
        ("acknowledged_by", "acknowledged_at"),
    )
    decisions: ClassVar = {
        "acknowledge": Decision(
            "Acknowledge",
            "Others see that you look after it. It closes when its cause is gone.",
            "Acknowledged.",
        )
    }

    def offered(self, obj: Alert) -> list[str]:
        return ["acknowledge"] if obj.closed_at is None and obj.acknowledged_at is None else []

    def decide(self, name: str, objects: QuerySet[Alert], request: HttpRequest) -> int:
        return sum(services.acknowledge_alert(alert=one, actor=request.user) for one in objects)  # type: ignore[arg-type]  # staff only

    @display(
        description="Severity", ordering="severity", label={"Info": "info", "Warning": "warning", "Critical": "danger"}
    )
    def severity_label(self, alert: Alert) -> str:
        return Alert.Severity(alert.severity).label

    @display(description="State", label={"Open": "warning", "Seen": "info", "Closed": "success"})
    def state_label(self, alert: Alert) -> str:
        if alert.closed_at is not None:
            return "Closed"
        return "Seen" if alert.acknowledged_at else "Open"

    @display(description="Opened", ordering="opened_at")
    def opened(self, alert: Alert) -> str:
        return f"{since_text(alert.opened_at, timezone.now())} ago"
