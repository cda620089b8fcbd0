"""docs/events.md, the JSON Schemas and the decoders say the same: examples pass everywhere, mutations nowhere."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from integration.market.bar_events import decode_bar, encode_bar
from integration.market.errors import REASON_CODES, SkippableError
from integration.market.tick_streams import SCHEMA_IN, SCHEMA_OUT
from integration.market.ticks import CONDITIONS, NO_VOLUME_CONDITIONS, OFF_MARKET_CONDITIONS
from tests.integration.market.test_bar_events import sample
from tests.integration.market.wire import (
    FORMS,
    Document,
    bar_3,
    code_of,
    paths,
    quote_1,
    quote_3,
    status_1,
    trade_1,
    trade_2,
    trade_3,
    with_value,
    without,
)

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "events.md").read_text()
EXAMPLES: list[Document] = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]
VALIDATORS = {
    path.stem: Draft202012Validator(json.loads(path.read_text()))
    for path in sorted((ROOT / "docs" / "schemas").glob("*.json"))
}
KEYS = {
    "market_data_normalized": "market_data",
    "market_data_distributed": "distribution",
    "normalized_data": "normalized_data",
    "analysis_data_ready": "analysis_data",
}


def schema_of(document: Document) -> str:
    return next(name for name, key in KEYS.items() if key in document)


def decoder_takes(document: Document) -> bool:
    if "analysis_data" not in document:
        return code_of(document) == ""
    try:
        decode_bar(json.dumps(document).encode())
    except SkippableError:
        return False
    return True


def schema_takes(document: Document, name: str) -> bool:
    return bool(VALIDATORS[name].is_valid(document))


DOCUMENTS: dict[str, Document] = {name: make() for name, make in FORMS.items()} | {
    "bar out": json.loads(encode_bar(sample()))
}
OPTIONAL = {
    "channel", "session", "sequence", "conditions", "trade_id", "action", "routing.key", "bid_size", "ask_size", "spread", "mid_price", "vwap", "volatility",
    "note", "beta",
}  # fmt: skip


def is_optional(name: str, path: str) -> bool:
    key = path.rpartition(".")[2]
    if path == "routing.key":
        return True
    in_form_1 = name.endswith("_1") and "volume_data" in path
    return key in OPTIONAL and not in_form_1 and name != "bar out"


def dropped() -> Iterator[Any]:
    for name, document in DOCUMENTS.items():
        for path in paths(document):
            if not is_optional(name, path):
                yield pytest.param(name, without(document, path), id=f"{name} without {path}")


def added() -> Iterator[Any]:
    for name, document in DOCUMENTS.items():
        for path in ["", *(path + "." for path in paths(document))]:
            place: Any = document
            for key in path.split(".")[:-1]:
                place = place[key]
            if isinstance(place, dict) and path != "derived_fields.":
                yield pytest.param(name, with_value(document, f"{path}surplus", 1), id=f"{name} with {path}surplus")


def wrong_types() -> Iterator[Any]:
    for name, document in DOCUMENTS.items():
        for path in paths(document):
            wrongs: tuple[Any, ...] = (True, {"a": []}, [[1]], "a:b c")
            for wrong in wrongs:
                takes_any_text = isinstance(wrong, str) and path.rpartition(".")[2] in {
                    "key",
                    "timestamp",
                    "event_id",
                    "note",
                    "symbol",
                    "source",
                    "beta",
                    "volatility",
                }
                if (
                    not takes_any_text
                    and not (name == "bar out" and path.endswith("validation_passed"))
                    and not _same_kind(name, path, wrong)
                ):
                    yield pytest.param(name, with_value(document, path, wrong), id=f"{name} {path}={wrong}")
            if path.rpartition(".")[2] not in {
                "spread",
                "mid_price",
                "vwap",
                "beta",
                "volatility",
                "note",
                "quality_score",
            } or path.startswith("processing"):
                yield pytest.param(name, with_value(document, path, None), id=f"{name} {path}=null")


def _same_kind(name: str, path: str, wrong: Any) -> bool:
    key = path.rpartition(".")[2]
    booleans = {"is_partial", "is_final", "validation_passed"}
    return wrong is True and key in booleans and name == "bar out"


@pytest.mark.parametrize("number", range(4))
def test_the_examples_of_the_page_pass_schema_and_decoder(number: int) -> None:
    document = EXAMPLES[number]
    VALIDATORS[schema_of(document)].validate(document)
    assert decoder_takes(document)


def test_there_is_a_schema_for_each_json_event_and_it_is_one() -> None:
    assert sorted(VALIDATORS) == sorted(KEYS)
    for validator in VALIDATORS.values():
        Draft202012Validator.check_schema(validator.schema)
    assert [schema_of(document) for document in EXAMPLES] == list(KEYS)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_documents_of_these_tests_pass_both(name: str) -> None:
    document = DOCUMENTS[name]
    VALIDATORS[schema_of(document)].validate(document)
    assert decoder_takes(document)


@pytest.mark.parametrize(("name", "document"), [*dropped(), *added(), *wrong_types()])
def test_a_mutation_is_refused_by_schema_and_decoder(name: str, document: Document) -> None:
    schema = schema_of(DOCUMENTS[name])
    assert (schema_takes(document, schema), decoder_takes(document)) == (False, False)


M = "market_data.metadata"
N = "normalized_data"
VALUES: list[tuple[str, Document, str, Any]] = [
    ("a correction without trade_id", trade_1(action="correct", trade_id=0), "market_data_normalized", False),
    ("a correction", trade_1(action="correct"), "market_data_normalized", True),
    ("a cancelled quote", with_value(quote_1(), f"{M}.action", "cancel"), "market_data_normalized", False),
    ("a trade with a bid", with_value(trade_1(), "market_data.price_data.bid", 1), "market_data_normalized", False),
    ("a status with conditions", with_value(status_1(), f"{M}.conditions", []), "market_data_normalized", False),
    ("a status with action new", with_value(status_1(), f"{M}.action", "new"), "market_data_normalized", True),
    ("a trade with status", trade_1(status="open"), "market_data_normalized", False),
    ("a condition twice", trade_1(conditions=["cash", "cash"]), "market_data_normalized", False),
    ("sequence 0", trade_1(sequence=0), "market_data_normalized", False),
    ("session 2^63", trade_1(session=2**63), "market_data_normalized", False),
    ("channel 2^31", trade_1(channel=2**31), "market_data_normalized", False),
    ("price 9.2e9", with_value(trade_2(), "data.price", 9_200_000_000), "market_data_distributed", False),
    ("ten decimals as text", with_value(trade_2(), "data.price", "0.1234567891"), "market_data_distributed", False),
    ("an exponent", with_value(trade_2(), "data.price", "1e3"), "market_data_distributed", True),
    ("negative time", with_value(trade_2(), "data.timestamp", -1), "market_data_distributed", False),
    ("no zone", with_value(trade_2(), "data.timestamp", "2026-01-05T14:30:00"), "market_data_distributed", False),
    ("lower-case MIC", with_value(trade_2(), "data.exchange", "xnas"), "market_data_distributed", False),
    ("empty routing", with_value(trade_2(), "routing", {}), "market_data_distributed", True),
    ("a long event_id", with_value(trade_2(), "event_id", "x" * 129), "market_data_distributed", False),
    (
        "version 2.0",
        with_value(quote_3(), "processing_metadata.normalization_version", "2.0"),
        "normalized_data",
        False,
    ),
    ("a quote with a price", with_value(quote_3(), f"{N}.price", 1), "normalized_data", False),
    ("a trade with a timeframe", with_value(trade_3(), f"{N}.timeframe", "1m"), "normalized_data", False),
    ("a bar without timeframe", without(bar_3(), f"{N}.timeframe"), "normalized_data", False),
    (
        "65 derived fields",
        with_value(quote_3(), "derived_fields", {f"k{n}": n for n in range(65)}),
        "normalized_data",
        False,
    ),
    ("market_cap null", with_value(quote_3(), f"{N}.market_cap", None), "normalized_data", True),
]


@pytest.mark.parametrize(("document", "schema", "good"), [pytest.param(*rest, id=name) for name, *rest in VALUES])
def test_schema_and_decoder_judge_values_alike(document: Document, schema: str, good: bool) -> None:
    assert (schema_takes(document, schema), decoder_takes(document)) == (good, good)


def test_the_page_names_every_reason_code() -> None:
    table = PAGE.partition("## Reason codes")[2].partition("## Out")[0]
    assert set(re.findall(r"`([a-z_]+)`", table.partition("Flags on stored rows")[0])) >= REASON_CODES


def test_the_page_names_every_condition_with_its_bit() -> None:
    rows = re.findall(r"^\| (\d+) \| `([a-z_]+)` \| (yes|no) \| (yes|no) \|$", PAGE, re.MULTILINE)
    assert [word for _, word, _, _ in rows] == list(CONDITIONS)
    assert [int(bit) for bit, *_ in rows] == list(range(len(CONDITIONS)))
    assert sum(1 << int(bit) for bit, _, sets, _ in rows if sets == "no") == OFF_MARKET_CONDITIONS
    assert sum(1 << int(bit) for bit, _, _, counts in rows if counts == "no") == NO_VOLUME_CONDITIONS


def _arrow_table(heading: str) -> list[tuple[str, str]]:
    section = PAGE.partition(heading)[2].partition("\n### ")[0]
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \| ([a-z0-9]+) \|", section, re.MULTILINE)
    return [(name, kind) for names, kind in rows for name in re.findall(r"`([a-z_]+)`", names)]


@pytest.mark.parametrize(("heading", "schema"), [("### Form 4", SCHEMA_IN), ("integrated/ticks`: Arrow", SCHEMA_OUT)])
def test_the_arrow_tables_of_the_page_are_the_schemas(heading: str, schema: Any) -> None:
    names = {"string": "utf8", "date32[day]": "date32"}
    assert _arrow_table(heading) == [(field.name, names.get(str(field.type), str(field.type))) for field in schema]
    assert not any(field.nullable for field in schema)
