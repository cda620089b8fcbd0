"""The quarantine's desk: what was turned away, why in words, its bytes, and the three decisions (release, release all, confirm bad)."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from unfold.admin import ModelAdmin
from unfold.decorators import display

from integration import preview, selectors, services
from integration.display import moment_text, since_text, topic_text
from integration.models import QuarantinedEvent
from integration.payloads import readable
from integration.reasons import NOT_RELEASABLE, REASONS, reason
from integration.workqueue import alias_url

State = QuarantinedEvent.State
WAITING: Final = "waiting"
OPERATE: Final = "integration.change_quarantinedevent"
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
            return queryset.filter(state__in=(State.QUARANTINED, State.PARKED))
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
class QuarantinedEventAdmin(ModelAdmin):  # type: ignore[misc]
    """Events that were turned away or wait; nothing here can be edited, only decided."""

    list_display = ("reason_code", "state_label", "instrument_text", "source_text", "detail", "partition", "came")
    list_filter = (StateFilter, ReasonFilter, SourceFilter, AgeFilter, ("position", admin.RelatedOnlyFieldListFilter))
    search_fields = ("instrument", "source", "detail")
    search_help_text = "Instrument, source or detail"
    list_select_related = ("position",)
    list_per_page = 50
    show_full_result_count = False
    ordering = ("-id",)
    actions = ("release_selected", "confirm_selected_bad")
    list_before_template = "admin/integration/quarantinedevent/reasons.html"
    change_form_outer_before_template = "admin/integration/quarantinedevent/event.html"
    readonly_fields = (
        "reason_words", "state", "detail", "instrument", "source", "identity", "partition_full", "batch_id", "event_time", "publish_time",
        "receive_time", "came_at", "decided_at", "released_batch_id", "note",
    )  # fmt: skip
    fieldsets = (
        ("Why", {"fields": ("reason_words", "detail", "state", "note")}),
        (
            "What",
            {"fields": (("instrument", "source"), "identity", "partition_full", ("batch_id", "released_batch_id"))},
        ),
        ("When", {"fields": ("event_time", "publish_time", "receive_time", ("came_at", "decided_at"))}),
    )

    # -- what may be done ------------------------------------------------------------------------------------------------

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Say whether the user may decide about events."""
        return bool(request.user.has_perm(OPERATE))

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

    @display(description="Reason")
    def reason_words(self, event: QuarantinedEvent) -> str:
        return f"{event.code}: {reason(event.code).words}"

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

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        event = self.get_object(request, object_id) if object_id else None
        context: dict[str, Any] = {}
        if event is not None:
            context = {
                "event": event,
                "reason": reason(event.code),
                "payload": readable(bytes(event.raw), event.code),
                "may_operate": self.has_operate_permission(request),
                "is_waiting": event.state in (State.QUARANTINED, State.PARKED),
                "is_releasable": event.code not in NOT_RELEASABLE,
                "alias_url": alias_url(event.instrument) if event.state == State.PARKED and event.instrument else "",
                "title": f"{event.code} #{event.pk}",
            }
        response: HttpResponse = super().changeform_view(
            request, object_id, form_url, {**(extra_context or {}), **context}
        )
        return response

    def get_urls(self) -> list[URLPattern]:
        wrap = self.admin_site.admin_view
        return [
            path(
                "reason/<slug:code>/release/",
                wrap(self.release_reason_view),
                name="integration_quarantinedevent_release_reason",
            ),
            path("<int:event_id>/release/", wrap(self.release_view), name="integration_quarantinedevent_release"),
            path(
                "<int:event_id>/confirm-bad/",
                wrap(self.confirm_bad_view),
                name="integration_quarantinedevent_confirm_bad",
            ),
            *super().get_urls(),
        ]

    # -- decisions -------------------------------------------------------------------------------------------------------

    @admin.action(description="Release selected events", permissions=["operate"])
    def release_selected(self, request: HttpRequest, queryset: QuerySet[QuarantinedEvent]) -> None:
        count = services.request_release(events=queryset, actor=request.user)  # type: ignore[arg-type]  # staff only
        self._say_released(request, count)

    @admin.action(description="Confirm selected events as bad", permissions=["operate"])
    def confirm_selected_bad(self, request: HttpRequest, queryset: QuerySet[QuarantinedEvent]) -> None:
        count = services.confirm_bad(events=queryset, actor=request.user)  # type: ignore[arg-type]  # staff only
        self._say_bad(request, count)

    def release_view(self, request: HttpRequest, event_id: int) -> HttpResponse:
        """Request the release of one event."""
        return self._decide_one(request, event_id, services.request_release, self._say_released)

    def confirm_bad_view(self, request: HttpRequest, event_id: int) -> HttpResponse:
        """Confirm one event as bad."""
        return self._decide_one(request, event_id, services.confirm_bad, self._say_bad)

    def _decide_one(
        self, request: HttpRequest, event_id: int, decide: Callable[..., int], say: Callable[[HttpRequest, int], None]
    ) -> HttpResponse:
        self._demand(request, "POST")
        form = NoteForm(request.POST)
        note = form.cleaned_data["note"] if form.is_valid() else ""
        say(request, decide(events=QuarantinedEvent.objects.filter(pk=event_id), actor=request.user, note=note))
        return HttpResponseRedirect(reverse("admin:integration_quarantinedevent_change", args=[event_id]))

    def release_reason_view(self, request: HttpRequest, code: str) -> HttpResponse:
        """Show what the release of all events of a reason would do (GET), and request it (POST)."""
        self._demand(request, "GET", "POST")
        form = NoteForm(request.POST or None)
        if request.method == "POST" and form.is_valid():
            count = services.request_release_of_reason(code=code, actor=request.user, note=form.cleaned_data["note"])  # type: ignore[arg-type]
            self._say_released(request, count)
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

    def _demand(self, request: HttpRequest, *methods: str) -> None:
        if not self.has_operate_permission(request):
            raise PermissionDenied
        if request.method not in methods:
            raise Http404(f"this address answers {' and '.join(methods)} only")

    def _say_released(self, request: HttpRequest, count: int) -> None:
        if count:
            messages.success(
                request, f"{count:,} events will be sent through the pipeline again, in order, by their consumers."
            )
        else:
            messages.warning(
                request, "Nothing was released: these events were decided before, or their reason allows no release."
            )

    def _say_bad(self, request: HttpRequest, count: int) -> None:
        if count:
            messages.success(
                request, f"{count:,} events are confirmed as bad. Their bytes are kept until their retention ends."
            )
        else:
            messages.warning(request, "Nothing was changed: these events were decided before.")
