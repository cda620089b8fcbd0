"""Forms of the admin: what a person types is checked as strictly as what a producer sends, and nobody overwrites unseen changes."""

import hashlib
from functools import lru_cache
from typing import Any, ClassVar, Final

import iso4217
import iso10383
from django import forms
from django.core.exceptions import ValidationError
from django.db import models
from django.forms.models import BaseInlineFormSet, model_to_dict
from django.utils import timezone

from integration.market.identifiers import instrument_problem
from integration.market.sessions import session_table
from integration.models import Instrument, InstrumentAlias, Issuer, Listing, Source, SourceBinding, Venue

_ALWAYS_OPEN: Final = "24/7"


def fingerprint(instance: models.Model) -> str:
    """Give a short digest of a row's editable values; equal digests mean that nobody changed it."""
    values = sorted((name, str(value)) for name, value in model_to_dict(instance).items())
    return hashlib.blake2b(repr(values).encode(), digest_size=12).hexdigest()


class GuardedForm(forms.ModelForm):  # type: ignore[type-arg]  # stubs: generic at check time, not at run time
    """Refuse to save over a change that somebody made after this form was opened."""

    row_version = forms.CharField(widget=forms.HiddenInput, required=False)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.pk:
            self.fields["row_version"].initial = fingerprint(self.instance)

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if self.instance.pk and cleaned.get("row_version"):
            # Locked until the admin's transaction ends: the row cannot change between this look and the save.
            now = self._meta.model.objects.select_for_update().filter(pk=self.instance.pk).first()
            if now is None or fingerprint(now) != cleaned["row_version"]:
                raise ValidationError(
                    "Somebody changed this row after you opened it. Reload the page, then make your change again.",
                    code="stale",
                )
        return cleaned


@lru_cache(maxsize=1)
def known_mics() -> frozenset[str]:
    """Give the market identifier codes of ISO 10383."""
    return frozenset(str(member.value.mic) for member in iso10383.MIC)


@lru_cache(maxsize=1)
def known_calendars() -> frozenset[str]:
    """Give the calendar names that exchange-calendars has; not each can be built (`calendar_problem`)."""
    import exchange_calendars  # heavy, and only a venue's form needs it

    return frozenset(exchange_calendars.get_calendar_names(include_aliases=True)) | {_ALWAYS_OPEN}


def calendar_problem(name: str) -> str:
    """Say why sessions cannot be had from a calendar of this name; empty when they can.

    A calendar that the library lists may fail in its code with the installed pandas (4.13 with pandas 3: Athens, Tel Aviv and three
    more), so the one that was typed is built: a tenth of a second, and always the truth about what is installed.
    """
    if name not in known_calendars():
        return f"No calendar of exchange-calendars has this name, was “{name}”. Use 24/7 for a venue that never closes."
    if not session_table(name, last_year=timezone.now().year + 1).known:
        return (
            f"exchange-calendars knows {name} but cannot build it with the installed pandas, so every market state would be “unknown”. "
            "Use the calendar of a venue with the same hours."
        )
    return ""


@lru_cache(maxsize=1)
def known_currencies() -> frozenset[str]:
    """Give the codes of ISO 4217."""
    return frozenset(currency.code for currency in iso4217.Currency)


class VenueForm(GuardedForm):
    """A venue: a MIC of ISO 10383 unless internal, a calendar that can be built, a time zone that exists."""

    class Meta:
        model = Venue
        fields = ("mic", "name", "calendar", "timezone", "is_internal")

    def clean_calendar(self) -> str:
        name = str(self.cleaned_data["calendar"])
        if problem := calendar_problem(name):
            raise ValidationError(problem, code="calendar")
        return name

    def clean_timezone(self) -> str:
        from zoneinfo import available_timezones

        name = str(self.cleaned_data["timezone"])
        if name not in available_timezones():
            raise ValidationError(
                f"No time zone has this name, was “{name}”. Example: America/New_York.", code="timezone"
            )
        return name

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean()
        mic = cleaned.get("mic") or self.instance.mic
        if mic and not cleaned.get("is_internal") and mic not in known_mics():
            self.add_error(
                "mic" if "mic" in self.fields else None,
                ValidationError(
                    f"{mic} is not registered in ISO 10383. Mark the venue as internal if it is ours.", code="mic"
                ),
            )
        return cleaned


class IssuerForm(GuardedForm):
    """An issuer: the LEI's check digits, the country's two letters."""

    class Meta:
        model = Issuer
        fields = ("name", "lei", "country")

    def clean_lei(self) -> str:
        from stdnum import lei

        text = str(self.cleaned_data["lei"]).strip().upper()
        if text and not lei.is_valid(text):
            raise ValidationError("The check digits of this LEI (ISO 17442) are wrong.", code="lei")
        return text

    def clean_country(self) -> str:
        text = str(self.cleaned_data["country"]).strip().upper()
        if text and not (len(text) == 2 and text.isascii() and text.isalpha()):
            raise ValidationError("A country is two letters (ISO 3166).", code="country")
        return text


class InstrumentForm(GuardedForm):
    """An instrument."""

    class Meta:
        model = Instrument
        fields = ("name", "asset_class", "issuer", "price_decimals", "allows_negative_price", "is_active")


class AliasForm(GuardedForm):
    """An alias: the syntax and check digits that the wire contract demands, and an interval that is one."""

    class Meta:
        model = InstrumentAlias
        fields = ("instrument", "scheme", "value", "valid_from", "valid_to")

    def clean_value(self) -> str:
        return str(self.cleaned_data["value"]).strip()

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean()
        scheme, value = cleaned.get("scheme"), cleaned.get("value")
        if scheme and value:
            text = value if scheme == InstrumentAlias.Scheme.TICKER else f"{scheme}:{value}"
            if problem := instrument_problem(text):
                self.add_error("value", ValidationError(problem[0].upper() + problem[1:] + ".", code="identifier"))
        start, end = cleaned.get("valid_from"), cleaned.get("valid_to")
        if start and end and start >= end:
            self.add_error("valid_to", ValidationError("An alias must start before it ends.", code="interval"))
        return cleaned


class PrefilledAliasForm(AliasForm):
    """An alias in a new row of the instrument's page; values that came with the link count as typed."""

    def has_changed(self) -> bool:
        return super().has_changed() or bool(not self.instance.pk and self.initial.get("value"))


class ListingForm(forms.ModelForm):  # type: ignore[type-arg]  # see GuardedForm
    """A listing: a currency of ISO 4217, positive units."""

    class Meta:
        model = Listing
        fields = ("venue", "currency", "price_unit", "tick_size", "is_primary")

    def clean_currency(self) -> str:
        code = str(self.cleaned_data["currency"])
        if code not in known_currencies():
            hint = " Pence are the price unit 0.01 of GBP." if code == "GBX" else ""
            raise ValidationError(f"Not a currency of ISO 4217, was “{code}”.{hint}", code="currency")
        return code

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        for name in ("price_unit", "tick_size"):
            number = cleaned.get(name)
            if number is not None and number <= 0:
                self.add_error(name, ValidationError("Must be above zero.", code="sign"))
        return cleaned


class ListingFormSet(BaseInlineFormSet):  # type: ignore[type-arg]  # see GuardedForm
    """The listings of one instrument: at most one is the primary one."""

    def clean(self) -> None:
        super().clean()
        kept = [
            form for form in self.forms if getattr(form, "cleaned_data", None) and not form.cleaned_data.get("DELETE")
        ]
        if sum(bool(form.cleaned_data.get("is_primary")) for form in kept) > 1:
            raise ValidationError("Only one listing can be the primary one.", code="primary")


class SourceForm(GuardedForm):
    """A source and the limits it is held to."""

    class Meta:
        model = Source
        fields = (
            "code",
            "name",
            "is_simulated",
            "is_active",
            "sequence_jump_limit",
            "future_limit_ms",
            "ancient_limit_s",
            "crossed_limit_bps",
        )
        labels: ClassVar = {
            "sequence_jump_limit": "Sequence jump limit (events)",
            "future_limit_ms": "Future limit (ms)",
            "ancient_limit_s": "Ancient limit (s)",
            "crossed_limit_bps": "Crossed limit (basis points)",
        }

    def clean_sequence_jump_limit(self) -> int:
        limit = int(self.cleaned_data["sequence_jump_limit"])
        if limit < 1:
            raise ValidationError("A limit of at least 1, or every event is a jump.", code="limit")
        return limit


class BindingForm(forms.ModelForm):  # type: ignore[type-arg]  # see GuardedForm
    """A topic that a source may use: one that this service reads."""

    class Meta:
        model = SourceBinding
        fields = ("topic",)

    def clean_topic(self) -> str:
        from integration.models import Subscription

        topic = str(self.cleaned_data["topic"]).strip()
        if not Subscription.objects.filter(topic=topic).exists():
            raise ValidationError(f"This service reads no such topic, was “{topic}”. See Subscriptions.", code="topic")
        return topic
