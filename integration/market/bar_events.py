"""`analysis_data_ready`, the event of a closed or revised bar: from exact integers to JSON and back. Builds no bars."""

import re
from datetime import date
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from integration.market.errors import SCHEMA, SkippableError
from integration.market.times import date_from_days, days_from_date, ns_from_text, text_from_ns
from integration.market.units import MAX_DECIMALS, text_from_nanos, text_from_scaled

CONSOLIDATED: Final = "consolidated"  # the source of a bar over all sources; its source_id is 0
TURNOVER_DECIMALS: Final = 2 * MAX_DECIMALS  # a price times a size, exact
Timeframe = Literal["1m", "5m", "15m", "1h", "4h", "1d"]
Reason = Literal["first", "late_trade", "correction", "cancel", "release", "override", "delivered"]


class BarEvent(Struct, frozen=True, kw_only=True, gc=False):
    """One revision of a bar. Prices and `volume` are nanos, `turnover` is in units of 1e-18, `start` and `timestamp` ns UTC, `session_date` days."""

    instrument_id: int
    symbol: str
    source_id: int
    source: str
    timeframe: Timeframe
    start: int
    session_date: int
    open: int
    high: int
    low: int
    close: int
    adjusted_close: int
    volume: int
    turnover: int
    trade_count: int
    revision: int
    reason: Reason
    sequence: int
    epoch: int
    timestamp: int
    is_partial: bool = False
    is_final: bool = False
    factor_version: int = 0
    quality_score: float | None = None
    corporate_actions: tuple[dict[str, Any], ...] = ()
    processing_time_ms: float = 0.0
    validation_passed: bool = True

    @property
    def event_id(self) -> str:
        """Name the revision; a repeat of it has the same name."""
        return f"bar:{self.instrument_id}:{self.source_id}:{self.timeframe}:{self.start}:{self.revision}"


class _PriceData(Struct, forbid_unknown_fields=True):
    open: str
    high: str
    low: str
    close: str
    adjusted_close: str


class _VolumeData(Struct, forbid_unknown_fields=True):
    volume: str
    dollar_volume: str
    trade_count: int


class _ProcessingMetadata(Struct, forbid_unknown_fields=True):
    source: str
    processing_time_ms: float
    validation_passed: bool


class _AnalysisData(Struct, forbid_unknown_fields=True):
    instrument_id: int
    symbol: str
    timeframe: Timeframe
    start: str
    session_date: str
    price_data: _PriceData
    volume_data: _VolumeData
    corporate_actions: tuple[dict[str, Any], ...]
    quality_score: float | None
    processing_metadata: _ProcessingMetadata


class _AnalysisDataReady(Struct, forbid_unknown_fields=True):
    event_id: str
    timestamp: str
    analysis_data: _AnalysisData
    revision: int
    reason: Reason
    is_partial: bool
    is_final: bool
    sequence: int
    epoch: int
    factor_version: int


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(_AnalysisDataReady)


def encode_bar(bar: BarEvent) -> bytes:
    """Write a bar as `analysis_data_ready` JSON; decimals are the shortest exact text."""
    data = _AnalysisData(
        instrument_id=bar.instrument_id,
        symbol=bar.symbol,
        timeframe=bar.timeframe,
        start=text_from_ns(bar.start),
        session_date=date_from_days(bar.session_date).isoformat(),
        price_data=_PriceData(*map(text_from_nanos, (bar.open, bar.high, bar.low, bar.close, bar.adjusted_close))),
        volume_data=_VolumeData(
            text_from_nanos(bar.volume), text_from_scaled(bar.turnover, TURNOVER_DECIMALS), bar.trade_count
        ),
        corporate_actions=bar.corporate_actions,
        quality_score=bar.quality_score,
        processing_metadata=_ProcessingMetadata(bar.source, bar.processing_time_ms, bar.validation_passed),
    )
    return _ENCODER.encode(
        _AnalysisDataReady(
            event_id=bar.event_id,
            timestamp=text_from_ns(bar.timestamp),
            analysis_data=data,
            revision=bar.revision,
            reason=bar.reason,
            is_partial=bar.is_partial,
            is_final=bar.is_final,
            sequence=bar.sequence,
            epoch=bar.epoch,
            factor_version=bar.factor_version,
        )
    )


def decode_bar(message: bytes) -> BarEvent:
    """Read an `analysis_data_ready` event as a client does; SkippableError when it is not one."""
    try:
        event = _DECODER.decode(message)
        return _bar(event)
    except (msgspec.DecodeError, ValueError) as error:
        raise SkippableError(f"not analysis_data_ready: {error}", code=SCHEMA) from None


_DECIMAL: Final = re.compile(r"(-?[0-9]{1,40})(?:\.([0-9]{1,18}))?", re.ASCII)


def _nanos(text: str) -> int:
    return _scaled(text, MAX_DECIMALS)


def _scaled(text: str, places: int) -> int:
    # a day's volume or turnover may exceed the range of one tick's numbers
    match = _DECIMAL.fullmatch(text)
    if match is None or len(match[2] or "") > places:
        raise ValueError(f"not a decimal of at most {places} places, was {text[:64]!r}")
    return int(match[1] + (match[2] or "").ljust(places, "0"))


def _bar(event: _AnalysisDataReady) -> BarEvent:
    data, prices, volumes = event.analysis_data, event.analysis_data.price_data, event.analysis_data.volume_data
    bar = BarEvent(
        instrument_id=data.instrument_id,
        symbol=data.symbol,
        source_id=int(event.event_id.split(":")[2]) if event.event_id.count(":") == 5 else -1,
        source=data.processing_metadata.source,
        timeframe=data.timeframe,
        start=ns_from_text(data.start),
        session_date=days_from_date(date.fromisoformat(data.session_date)),
        open=_nanos(prices.open),
        high=_nanos(prices.high),
        low=_nanos(prices.low),
        close=_nanos(prices.close),
        adjusted_close=_nanos(prices.adjusted_close),
        volume=_nanos(volumes.volume),
        turnover=_scaled(volumes.dollar_volume, TURNOVER_DECIMALS),
        trade_count=volumes.trade_count,
        revision=event.revision,
        reason=event.reason,
        sequence=event.sequence,
        epoch=event.epoch,
        timestamp=ns_from_text(event.timestamp),
        is_partial=event.is_partial,
        is_final=event.is_final,
        factor_version=event.factor_version,
        quality_score=data.quality_score,
        corporate_actions=data.corporate_actions,
        processing_time_ms=data.processing_metadata.processing_time_ms,
        validation_passed=data.processing_metadata.validation_passed,
    )
    if bar.event_id != event.event_id:
        raise ValueError(f"event_id is {bar.event_id}, was {event.event_id[:64]!r}")
    return bar
