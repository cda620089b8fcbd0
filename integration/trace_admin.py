"""The page “Trace”: an identity asked for, what is known of the event told, with links to where each thing is kept. Reads only."""

from typing import Any, Final
from urllib.parse import urlencode

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.views.decorators.http import require_safe

from integration.display import NOTHING, moment_text
from integration.market.times import ns_from_text
from integration.models import QuarantinedEvent
from integration.trace import EventName, Step, Trace, trace

# A page must answer; the command may search longer.
_BUDGET_S: Final = 4.0
_TIMES: Final = frozenset({"ts_event", "ts_publish", "ts_received"})
_LARGEST: Final = 2**63 - 1


class TraceForm(forms.Form):
    """What names an event: its event_id, or its place in its source's numbering."""

    event_id = forms.CharField(max_length=128, required=False, strip=False)
    source = forms.CharField(max_length=32, required=False)
    channel = forms.IntegerField(min_value=-2, max_value=2**31 - 1, required=False)
    session = forms.IntegerField(min_value=-2, max_value=_LARGEST, required=False)
    sequence = forms.IntegerField(min_value=-(2**63), max_value=_LARGEST, required=False)
    around = forms.CharField(max_length=40, required=False)

    def clean_around(self) -> int:
        text: str = self.cleaned_data["around"].strip()
        try:
            return int(text) if text.isdigit() else ns_from_text(text) if text else 0
        except ValueError as problem:
            raise ValidationError("A time is ISO 8601 with a zone, or ns.") from problem

    def clean(self) -> dict[str, Any]:
        given = super().clean() or {}
        if not self.errors and bool(given.get("event_id")) == (given.get("sequence") is not None):
            raise ValidationError("Give either an event_id or a sequence.")
        return given

    @property
    def name(self) -> EventName:
        """Give what was asked for; only of a valid form."""
        given = self.cleaned_data
        if given["event_id"]:
            return EventName.of_event_id(given["event_id"], given["source"])
        return EventName(given["channel"] or 0, given["session"] or 0, given["sequence"], given["source"])


def trace_url(event: QuarantinedEvent) -> str:
    """Give the page's address for a quarantined event."""
    asked: dict[str, Any] = {"channel": event.channel, "session": event.session, "sequence": event.sequence}
    if event.source:
        asked["source"] = event.source
    if event.ts_event > 0:
        asked["around"] = event.ts_event
    return f"{reverse('trace_event')}?{urlencode(asked)}"


@require_safe
def trace_view(request: HttpRequest) -> HttpResponse:
    """Show the form, and the answer when something was asked."""
    if not request.user.has_perms(("integration.view_quarantinedevent", "integration.view_batch")):
        raise PermissionDenied
    # A link may fill in a part only, the time of a batch say: nothing is asked before there is a name.
    form = TraceForm(request.GET if request.GET.get("event_id") or request.GET.get("sequence") else None)
    found = None
    if form.is_bound and form.is_valid():
        found = trace(form.name, around_ns=form.cleaned_data["around"], budget_s=_BUDGET_S)
    context = {
        **admin.site.each_context(request),
        "title": "Trace",
        "form": form,
        "asked": request.GET,
        "found": found,
        "steps": [_shown(step) for step in found.steps] if found else [],
        "tone": _tone(found) if found else "",
    }
    return TemplateResponse(request, "admin/integration/trace.html", context)


def _shown(step: Step) -> dict[str, Any]:
    facts = [
        (key.replace("_", " "), moment_text(value) if key in _TIMES else value)
        for key, value in step.facts.items()
        if value is not None
    ]
    url = reverse(f"admin:integration_{step.link[0]}_change", args=[step.link[1]]) if step.link else ""
    return {
        "stage": step.stage.replace("_", " "),
        "time": moment_text(step.at) if step.at else NOTHING,
        "words": step.words,
        "facts": facts,
        "url": url,
    }


def _tone(found: Trace) -> str:
    if found.rows > 1:
        return "tone-critical"
    return {"published": "tone-well", "numbered": "tone-well", "stored": "tone-well"}.get(found.state, "tone-warning")


urlpatterns = [path("admin/trace/", admin.site.admin_view(trace_view), name="trace_event")]
