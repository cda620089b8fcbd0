"""The quarantine's desk: what was turned away, why in words, its bytes, and the three decisions (release, release all, confirm bad)."""

from datetime import timedelta
from typing import Any, ClassVar, Final

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from unfold.decorators import display

from integration import preview, selectors, services
from integration.display import moment_text, since_text, topic_text
from integration.flow_admin import Decision, DecisionMixin, ReadOnlyAdmin
from integration.models import QuarantinedEvent
from integration.payloads import readable
from integration.reasons import NOT_RELEASABLE, REASONS, reason
from integration.trace_admin import trace_url
from integration.workqueue import alias_url

State = QuarantinedEvent.State
_WAITING: Final = (State.QUARANTINED, State.PARKED)
_AGES: Final = {
    "hour": ("Last hour", timedelta(hours=1), True),
    "day": ("Last day", timedelta(days=1), True),
    "over_day": ("Over a day", timedelta(days=1), False),
    "over_week": ("Over a week", timedelta(days=7), False),
}
STATE_LABELS: Final = {
    "Quarantined": "warning",
    "Parked": "info",
    "Release requested": "primary",
    "Released": "success",
    "Confirmed bad": "danger",
}


class StateFilter(admin.SimpleListFilter):
    """By state; without a choice, what waits for a decision."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("all", "All"), *State.choices]

    def choices(self, changelist: Any) -> Any:
        first, *others = super().choices(changelist)
        yield {**first, "display": "Waiting for a decision"}
        yield from others

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() is None:
            return queryset.filter(state__in=_WAITING)
        return queryset if self.value() == "all" else queryset.filter(state=self.value())


class ReasonFilter(admin.SimpleListFilter):
    """By reason code."""

    title = "reason"
    parameter_name = "code"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(code, code) for code in REASONS]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(code=self.value()) if self.value() else queryset


class SourceFilter(admin.SimpleListFilter):
    """By the source that the event claims."""

    title = "source"
    parameter_name = "source"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("-", "Not readable"), *((code, code) for code in selectors.source_codes())]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        return queryset.filter(source="" if value == "-" else value) if value else queryset


class AgeFilter(admin.SimpleListFilter):
    """By the time since it came."""

    title = "age"
    parameter_name = "age"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, title) for name, (title, _, _) in _AGES.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() not in _AGES:
            return queryset
        _, span, is_newer = _AGES[str(self.value())]
        limit = timezone.now() - span
        return queryset.filter(created_at__gte=limit) if is_newer else queryset.filter(created_at__lt=limit)


class NoteForm(forms.Form):
    """The words that go with a decision into the audit trail."""

    note = forms.CharField(max_length=500, required=False, label="Why (kept in the audit trail)")


@admin.register(QuarantinedEvent)
class QuarantinedEventAdmin(DecisionMixin, ReadOnlyAdmin):
    """Events that were turned away or wait; nothing here can be edited, only decided."""

    list_display = ("reason_code", "state_label", "instrument_text", "source_text", "detail", "partition", "came")
    list_filter = (StateFilter, ReasonFilter, SourceFilter, AgeFilter, ("position", admin.RelatedOnlyFieldListFilter))
    search_fields = ("instrument", "source", "detail")
    search_help_text = "Instrument, source or detail"
    list_select_related = ("position",)
    list_per_page = 50
    ordering = ("-id",)
    actions = ("release_selected", "confirm_selected_bad")
    list_before_template = "admin/integration/quarantinedevent/reasons.html"
    change_form_outer_before_template = "admin/integration/quarantinedevent/event.html"
    readonly_fields = (
        "state", "instrument", "source", "identity", "partition_full", "batch_id", "event_time", "publish_time",
        "receive_time", "came_at", "decided_at", "released_batch_id", "note",
    )  # fmt: skip
    fieldsets = (
        ("Decision", {"fields": (("state", "decided_at"), "note", "released_batch_id")}),
        ("What", {"fields": (("instrument", "source"), "identity", ("partition_full", "batch_id"))}),
        ("When", {"fields": ("event_time", "publish_time", "receive_time", "came_at")}),
    )

    decisions: ClassVar = {
        "release": Decision(
            "Release this event",
            "It is sent through the pipeline again, in its place.",
            "{counted} will be sent through the pipeline again, in order, by their consumers.",
            "Nothing was released: these events were decided before, or their reason allows no release.",
        ),
        "confirm-bad": Decision(
            "Confirm as bad",
            "It never flows.",
            "{counted} confirmed as bad. Their bytes are kept until their retention ends.",
            "Nothing was changed: these events were decided before.",
            look="danger",
        ),
    }

    def get_queryset(self, request: HttpRequest) -> QuerySet[QuarantinedEvent]:
        found: QuerySet[QuarantinedEvent] = super().get_queryset(request)
        # A list of a hundred events must not read a hundred raw messages of up to 5 MiB.
        return found.defer("raw", "position__snapshot", "position__message_id")

    # -- columns ---------------------------------------------------------------------------------------------------------

    @display(description="Reason", ordering="code")
    def reason_code(self, event: QuarantinedEvent) -> str:
        return format_html('<span title="{}">{}</span>', reason(event.code).words, event.code)

    @display(description="State", ordering="state", label=STATE_LABELS)
    def state_label(self, event: QuarantinedEvent) -> str:
        return State(event.state).label.partition(" (")[0]

    @display(description="Instrument", ordering="instrument")
    def instrument_text(self, event: QuarantinedEvent) -> str:
        return event.instrument or "–"

    @display(description="Source", ordering="source")
    def source_text(self, event: QuarantinedEvent) -> str:
        return event.source or "not readable"

    @display(description="Partition", ordering="position")
    def partition(self, event: QuarantinedEvent) -> str:
        return format_html('<span title="{}">{}</span>', event.position.partition, topic_text(event.position.partition))

    @display(description="Came", ordering="id")
    def came(self, event: QuarantinedEvent) -> str:
        moment = f"{event.created_at:%Y-%m-%d %H:%M:%S} UTC"
        return format_html('<span title="{}">{} ago</span>', moment, since_text(event.created_at, timezone.now()))

    # -- fields of the page ----------------------------------------------------------------------------------------------

    @display(description="Identity")
    def identity(self, event: QuarantinedEvent) -> str:
        if event.channel == -2:
            return f"unreadable; known by the hash {event.sequence} of its bytes"
        if event.channel == -1:
            return f"not numbered; known by the hash {event.sequence} of its event_id"
        return f"channel {event.channel}, session {event.session}, sequence {event.sequence:,}"

    @display(description="Partition")
    def partition_full(self, event: QuarantinedEvent) -> str:
        return event.position.partition

    @display(description="Event time (venue)")
    def event_time(self, event: QuarantinedEvent) -> str:
        return moment_text(event.ts_event)

    @display(description="Published (broker)")
    def publish_time(self, event: QuarantinedEvent) -> str:
        return moment_text(event.ts_publish)

    @display(description="Received (our socket)")
    def receive_time(self, event: QuarantinedEvent) -> str:
        return moment_text(event.ts_received)

    @display(description="Came into quarantine")
    def came_at(self, event: QuarantinedEvent) -> str:
        return f"{event.created_at:%Y-%m-%d %H:%M:%S} UTC"

    @display(description="Last change")
    def decided_at(self, event: QuarantinedEvent) -> str:
        return f"{event.updated_at:%Y-%m-%d %H:%M:%S} UTC"

    # -- pages -----------------------------------------------------------------------------------------------------------

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        now = timezone.now()
        reasons = [
            {
                "found": found,
                "words": reason(found.code).words,
                "age": since_text(found.oldest_at, now),
                "is_releasable": found.code not in NOT_RELEASABLE,
            }
            for found in selectors.quarantine_by_reason()
            if found.state != State.RELEASE_REQUESTED
        ]
        context = {
            "reasons": reasons,
            "chosen_code": request.GET.get("code", ""),
            "may_operate": self.has_operate_permission(request),
        }
        response: HttpResponse = super().changelist_view(request, {**(extra_context or {}), **context})
        return response

    def panel(self, request: HttpRequest, obj: QuarantinedEvent | None) -> dict[str, Any]:
        context = super().panel(request, obj)
        if obj is None:
            return context
        return {
            **context,
            "event": obj,
            "reason": reason(obj.code),
            "payload": readable(bytes(obj.raw), obj.code),
            "trace_url": trace_url(obj),
            "is_waiting": obj.state in _WAITING,
            "is_releasable": obj.code not in NOT_RELEASABLE,
            "alias_url": alias_url(obj.instrument) if obj.state == State.PARKED and obj.instrument else "",
            "title": f"{obj.code} #{obj.pk}",
        }

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.release_reason_view)
        # Before the decisions about one event, whose addresses would take “reason/code” for an id.
        return [
            path("reason/<slug:code>/release/", view, name="integration_quarantinedevent_release_reason"),
            *super().get_urls(),
        ]

    # -- decisions -------------------------------------------------------------------------------------------------------

    def offered(self, obj: QuarantinedEvent) -> list[str]:
        if obj.state not in _WAITING:
            return []
        return [name for name in self.decisions if name != "release" or obj.code not in NOT_RELEASABLE]

    def decide(self, name: str, objects: QuerySet[QuarantinedEvent], request: HttpRequest) -> int:
        form = NoteForm(request.POST)
        note = form.cleaned_data["note"] if form.is_valid() else ""
        act = services.request_release if name == "release" else services.confirm_bad
        return act(events=objects, actor=request.user, note=note)  # type: ignore[arg-type]  # staff only

    @admin.action(description="Release selected events", permissions=["operate"])
    def release_selected(self, request: HttpRequest, queryset: QuerySet[QuarantinedEvent]) -> None:
        self.take(request, "release", queryset)

    @admin.action(description="Confirm selected events as bad", permissions=["operate"])
    def confirm_selected_bad(self, request: HttpRequest, queryset: QuerySet[QuarantinedEvent]) -> None:
        self.take(request, "confirm-bad", queryset)

    def release_reason_view(self, request: HttpRequest, code: str) -> HttpResponse:
        """Show what the release of all events of a reason would do (GET), and request it (POST)."""
        self.demand(request, "GET", "POST")
        form = NoteForm(request.POST or None)
        if request.method == "POST" and form.is_valid():
            count = services.request_release_of_reason(code=code, actor=request.user, note=form.cleaned_data["note"])  # type: ignore[arg-type]
            self.say(request, "release", count)
            return HttpResponseRedirect(reverse("admin:integration_quarantinedevent_changelist"))
        by_source = {} if code in NOT_RELEASABLE else selectors.releasable_of_reason(code)
        if code not in REASONS and not by_source:
            raise Http404(f"no such reason, was {code}")
        context = {
            **self.admin_site.each_context(request),
            "title": f"Release all events of the reason {code}",
            "opts": self.opts,
            "code": code,
            "reason": reason(code),
            "by_source": [(source or "not readable", f"{count:,}") for source, count in by_source.items()],
            "total": sum(by_source.values()),
            "total_text": f"{sum(by_source.values()):,}",
            "trial": preview.trial_release(code) if by_source else None,
            "form": form,
        }
        return TemplateResponse(request, "admin/integration/quarantinedevent/release_reason.html", context)
