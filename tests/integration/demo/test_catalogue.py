"""The demo's reference data hold together, and use every way of the contract."""

from stdnum import isin

from integration.demo.catalogue import (
    ARROW,
    ASSET_CLASSES,
    DISTRIBUTED,
    E_MINI,
    INSTRUMENTS,
    NORMALIZED,
    PROVIDER,
    REPLAY,
    SIMULATED,
    SIMULATED_INSTRUMENTS,
    SOURCES,
    UNKNOWN,
    VENUES,
)
from integration.market.identifiers import instrument_problem


def test_no_two_instruments_share_a_name_on_the_wire() -> None:
    texts = [one.ticker for one in INSTRUMENTS] + [f"ISIN:{one.isin}" for one in INSTRUMENTS if one.isin]
    assert len(set(texts)) == len(texts)
    assert UNKNOWN.text not in texts


def test_every_text_is_one_that_the_contract_accepts() -> None:
    assert [one.text for one in (*INSTRUMENTS, UNKNOWN) if instrument_problem(one.text)] == []
    assert all(isin.is_valid(one.isin) for one in INSTRUMENTS if one.isin)
    assert any(one.text.startswith("ISIN:") for one in INSTRUMENTS)


def test_all_forms_all_topics_and_all_spellings_are_used() -> None:
    assert {one.form for one in INSTRUMENTS} == {NORMALIZED, DISTRIBUTED, PROVIDER, ARROW}
    assert {one.asset_class for one in INSTRUMENTS} == set(ASSET_CLASSES)
    for form in (NORMALIZED, DISTRIBUTED, PROVIDER):
        styles = {(one.times_as_text, one.prices_as_text) for one in INSTRUMENTS if one.form == form}
        assert styles == {(False, False), (False, True), (True, False), (True, True)}


def test_a_channel_belongs_to_one_topic_and_one_form() -> None:
    homes: dict[tuple[str, int], set[tuple[str, int]]] = {}
    for one in (*INSTRUMENTS, UNKNOWN):
        homes.setdefault((one.source, one.channel), set()).add((one.asset_class, one.form))
    assert all(len(home) == 1 for home in homes.values())
    assert (E_MINI.source, E_MINI.channel) == (REPLAY, 1)


def test_every_source_may_use_the_topics_of_its_instruments_and_every_venue_exists() -> None:
    allowed = {source.code: source.asset_classes for source in SOURCES}
    assert all(one.asset_class in allowed[one.source] for one in INSTRUMENTS)
    assert {one.mic for one in INSTRUMENTS} == {venue.mic for venue in VENUES}


def test_what_is_simulated_says_so() -> None:
    assert all(one.name.endswith("(simulated)") for one in SIMULATED_INSTRUMENTS)
    assert {source.code for source in SOURCES if source.is_simulated} == {SIMULATED}
    assert "replay" in E_MINI.name
