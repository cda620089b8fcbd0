"""load_demo adds what is missing and leaves what operators changed; feed refuses numbers that make no stream."""

from io import StringIO
from typing import Any

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from integration.demo import history
from integration.demo.catalogue import INSTRUMENTS, UNKNOWN
from integration.models import Instrument, InstrumentAlias, Listing, Source, SourceBinding, Venue
from integration.reference import load_reference

NOW = 1_800_000_000_000_000_000


def load() -> str:
    output = StringIO()
    call_command("load_demo", stdout=output)
    return output.getvalue().strip()


@pytest.mark.django_db
def test_every_instrument_can_be_resolved_by_what_the_feed_writes() -> None:
    assert load() == f"demo reference data: {len(INSTRUMENTS)} instruments, {len(INSTRUMENTS)} of them new"
    compiled = load_reference()
    for one in INSTRUMENTS:
        facts = compiled.instruments[compiled.resolve(one.text, NOW)]
        assert facts.id == compiled.resolve(one.ticker, NOW)
        assert (facts.venue, facts.currencies, facts.allows_negative) == (
            one.mic,
            frozenset({"USD"}),
            one.allows_negative,
        )
        assert settings.NORMALIZED_TOPICS[one.asset_class] in compiled.sources[one.source].topics
        if one.isin:
            assert compiled.resolve(f"ISIN:{one.isin}", NOW) == facts.id
    assert compiled.resolve(UNKNOWN.text, NOW) == 0


@pytest.mark.django_db
def test_rows_say_what_the_catalogue_says() -> None:
    load()
    euro = Listing.objects.select_related("instrument", "venue").get(instrument__aliases__value="EURUSD.SIMX")
    assert (str(euro.tick_size), str(euro.price_unit), euro.instrument.price_decimals) == ("0.00001", "1", 5)
    assert (euro.venue.calendar, euro.venue.is_internal) == ("24/7", True)
    assert dict(Source.objects.values_list("code", "is_simulated")) == {"cme-replay": False, "simulated": True}
    for instrument in Instrument.objects.select_related("issuer"):
        instrument.full_clean()


@pytest.mark.django_db
def test_a_second_run_adds_nothing_and_keeps_what_operators_changed() -> None:
    load()
    counts = [model.objects.count() for model in (Venue, Instrument, Listing, InstrumentAlias, Source, SourceBinding)]
    Source.objects.filter(code="simulated").update(is_active=False, crossed_limit_bps=7)
    SourceBinding.objects.filter(source__code="simulated", topic__endswith="equities").delete()
    Venue.objects.filter(mic="SIMX").update(name="Ours")
    Instrument.objects.filter(name__startswith="Apple").update(name="Renamed")
    assert load().endswith(" 0 of them new")
    assert [model.objects.count() for model in (Venue, Instrument, Listing, InstrumentAlias, Source)] == counts[:-1]
    assert SourceBinding.objects.count() == counts[-1] - 1
    simulated = Source.objects.get(code="simulated")
    assert (simulated.is_active, simulated.crossed_limit_bps) == (False, 7)
    assert Venue.objects.get(mic="SIMX").name == "Ours"
    assert Instrument.objects.filter(name="Renamed").exists()


@pytest.mark.django_db
def test_an_isin_that_names_another_instrument_is_left_to_it() -> None:
    mine = Instrument.objects.create(name="Mine", asset_class="equities")
    InstrumentAlias.objects.create(instrument=mine, scheme="ISIN", value="US0378331005")
    load()
    assert InstrumentAlias.objects.get(value="US0378331005").instrument == mine
    assert InstrumentAlias.objects.filter(value="AAPL.SIMX").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("rate", -1.0), ("rate", float("nan")), ("faults", -0.1), ("faults", float("inf")), ("seed", -1), ("speed", 0.0),
        ("speed", float("nan")), ("start", -1), ("start", 2**63), ("session", -1), ("count", -1), ("seconds", float("nan")),
    ],
)  # fmt: skip
def test_numbers_that_make_no_stream_are_refused(option: str, value: Any) -> None:
    with pytest.raises(CommandError, match=f"^--{option} must .*, was {value}$".replace("+", r"\+")):
        call_command("feed", **{option: value})


def test_missing_demo_data_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "find_spec", lambda _: None)
    with pytest.raises(CommandError, match="demo data missing: package mlfinpy"):
        call_command("feed")
