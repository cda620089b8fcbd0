"""The desk for reference data: venues, issuers, instruments with their names and listings, sources with their topics.

Ticks are never listed in full; an instrument's page shows its newest. Forms check what a person types (`forms`).
"""

from typing import Any, ClassVar, Final
from urllib.parse import urlencode

from django.contrib import admin
from django.db.models import Count, Field, QuerySet
from django.forms import BaseInlineFormSet, SplitDateTimeWidget
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.text import capfirst
from unfold.admin import ModelAdmin, TabularInline
from unfold.decorators import display
from unfold.widgets import UnfoldAdminDecimalFieldWidget

from integration import forms, selectors
from integration.display import moment_text, topic_text
from integration.fields import NanosField
from integration.flow_admin import PanelMixin
from integration.models import Instrument, InstrumentAlias, Issuer, Listing, Source, SourceBinding, Venue

_PAGE: Final = 100


@admin.register(Venue)
class VenueAdmin(ModelAdmin):  # type: ignore[misc]
    """Venues."""

    form = forms.VenueForm
    list_display = ("mic", "name", "calendar", "timezone", "is_internal", "listing_count")
    list_filter = ("is_internal",)
    search_fields = ("mic", "name")
    search_help_text = "MIC or name"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Venue]:
        found: QuerySet[Venue] = super().get_queryset(request)
        return found.annotate(listing_total=Count("listings"))

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return ("mic",) if obj else ()

    @display(description="Listings", ordering="listing_total")
    def listing_count(self, venue: Any) -> int:
        return int(venue.listing_total)


@admin.register(Issuer)
class IssuerAdmin(ModelAdmin):  # type: ignore[misc]
    """Issuers."""

    form = forms.IssuerForm
    list_display = ("name", "lei", "country")
    search_fields = ("name", "=lei")
    search_help_text = "Name or LEI"


class LabelledInline(TabularInline):  # type: ignore[misc]
    """Rows of a table whose fields say their name: the column's heading is no label to a screen reader."""

    def formfield_for_dbfield(self, db_field: "Field[Any, Any]", request: HttpRequest, **kwargs: Any) -> Any:
        field = super().formfield_for_dbfield(db_field, request, **kwargs)
        if field is not None:
            label = capfirst(field.label)
            widget = getattr(field.widget, "widget", field.widget)  # inside of the links to add and change
            if isinstance(widget, SplitDateTimeWidget):
                for part, name in zip(widget.widgets, ("date", "time"), strict=True):
                    part.attrs["aria-label"] = f"{label}, {name}"
            else:
                widget.attrs["aria-label"] = label
        return field


class AliasInline(LabelledInline):
    """An instrument's names over time."""

    model = InstrumentAlias
    form = forms.PrefilledAliasForm
    fields = ("scheme", "value", "valid_from", "valid_to")
    extra = 0
    tab = False

    def get_extra(self, request: HttpRequest, obj: Any = None, **kwargs: Any) -> int:
        return 1 if obj is None else 0

    def get_formset(
        self, request: HttpRequest, obj: Any = None, **kwargs: Any
    ) -> "type[BaseInlineFormSet[Any, Any, Any]]":
        formset: type[BaseInlineFormSet[Any, Any, Any]] = super().get_formset(request, obj, **kwargs)
        value = request.GET.get("alias", "")
        if obj is not None or not value:
            return formset
        scheme = request.GET.get("scheme", InstrumentAlias.Scheme.TICKER)

        class Prefilled(formset):  # type: ignore[valid-type,misc]
            """The first new row holds the name that the link came with."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                kwargs["initial"] = [{"scheme": scheme, "value": value}]
                super().__init__(*args, **kwargs)

        return Prefilled


class ListingInline(LabelledInline):
    """Where an instrument trades."""

    model = Listing
    form = forms.ListingForm
    formset = forms.ListingFormSet
    fields = ("venue", "currency", "price_unit", "tick_size", "is_primary")
    formfield_overrides: ClassVar = {NanosField: {"widget": UnfoldAdminDecimalFieldWidget}}
    extra = 0

    def get_extra(self, request: HttpRequest, obj: Any = None, **kwargs: Any) -> int:
        return 1 if obj is None else 0


@admin.register(Instrument)
class InstrumentAdmin(PanelMixin, ModelAdmin):  # type: ignore[misc]
    """Instruments with their names and listings; their newest ticks to look at."""

    form = forms.InstrumentForm
    list_display = ("name", "permanent_id", "names", "asset_class", "venues", "is_active")
    list_filter = ("asset_class", "is_active", ("listings__venue", admin.RelatedOnlyFieldListFilter))
    search_fields = ("name", "=id", "aliases__value")
    search_help_text = "Name, permanent id or any alias"
    autocomplete_fields = ("issuer",)
    list_per_page = _PAGE
    inlines = (AliasInline, ListingInline)
    change_form_outer_after_template = "admin/integration/instrument/ticks.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Instrument]:
        found: QuerySet[Instrument] = super().get_queryset(request)
        return found.prefetch_related("aliases", "listings")

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # its id is on every stored tick; an instrument that ended is not active

    @display(description="Id", ordering="id")
    def permanent_id(self, instrument: Instrument) -> int:
        return instrument.pk

    @display(description="Names now")
    def names(self, instrument: Instrument) -> str:
        now = timezone.now()
        valid = [
            a.wire_text
            for a in instrument.aliases.all()
            if (not a.valid_from or a.valid_from <= now) and (not a.valid_to or now < a.valid_to)
        ]
        return ", ".join(valid) or "none: its events are parked"

    @display(description="Listed on")
    def venues(self, instrument: Instrument) -> str:
        return ", ".join(f"{listing.venue_id} {listing.currency}" for listing in instrument.listings.all()) or "–"

    def panel(self, request: HttpRequest, obj: Instrument | None) -> dict[str, Any]:
        if obj is None:
            return {}
        sources = dict(Source.objects.values_list("id", "code"))
        return {
            "ticks": [
                {"row": row, "time": moment_text(row.ts_event), "source": sources.get(row.source_id, "–")}
                for row in selectors.newest_ticks(obj.pk)
            ]
        }


@admin.register(InstrumentAlias)
class InstrumentAliasAdmin(PanelMixin, ModelAdmin):  # type: ignore[misc]
    """Names of instruments over time; adding one lets the events flow that wait for it."""

    form = forms.AliasForm
    list_display = ("value", "scheme", "instrument", "valid_from", "valid_to")
    list_filter = ("scheme",)
    list_select_related = ("instrument",)
    search_fields = ("value", "instrument__name")
    search_help_text = "Alias or instrument"
    autocomplete_fields = ("instrument",)
    change_form_outer_before_template = "admin/integration/instrumentalias/parked.html"

    def panel(self, request: HttpRequest, obj: InstrumentAlias | None) -> dict[str, Any]:
        value, scheme = request.GET.get("value", ""), request.GET.get("scheme", "TICKER")
        if obj is not None or not value:
            return {}
        text = value if scheme == InstrumentAlias.Scheme.TICKER else f"{scheme}:{value}"
        new = {"alias": value, "scheme": scheme}
        return {
            "parked": selectors.parked_under(text),
            "parked_text": text,
            "new_instrument_url": f"{reverse('admin:integration_instrument_add')}?{urlencode(new)}",
            "oldest_event": moment_text(selectors.oldest_parked_event(text)),
        }


class BindingInline(LabelledInline):
    """The topics that a source may use."""

    model = SourceBinding
    form = forms.BindingForm
    fields = ("topic",)
    extra = 0


@admin.register(Source)
class SourceAdmin(ModelAdmin):  # type: ignore[misc]
    """Sources with their topics and limits."""

    form = forms.SourceForm
    fieldsets = (
        (None, {"fields": ("code", "name", ("is_active", "is_simulated"), "row_version")}),
        ("Limits", {"fields": (("sequence_jump_limit", "crossed_limit_bps"), ("future_limit_ms", "ancient_limit_s"))}),
    )
    list_display = ("code", "name", "is_simulated", "is_active", "topics")
    list_filter = ("is_active", "is_simulated")
    search_fields = ("code", "name")
    search_help_text = "Code or name"
    inlines = (BindingInline,)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Source]:
        found: QuerySet[Source] = super().get_queryset(request)
        return found.prefetch_related("bindings")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return ("code",) if obj else ()  # it is written on every stored event and in the senders' configuration

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    @display(description="Topics")
    def topics(self, source: Source) -> str:
        return (
            ", ".join(topic_text(binding.topic) for binding in source.bindings.all()) or "none: every event is rejected"
        )
