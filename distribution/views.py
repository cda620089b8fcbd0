"""The desk page, its sign-in, and the bars that its chart asks for."""

import time
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Final

from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from distribution import access, protocol, selectors
from distribution.board import InstrumentState, judged
from distribution.feeds import Desk
from integration.market.units import decimal_from_nanos
from integration.models import Instrument

BAR_LIMIT: Final = 2_000
# key, label, and what it counts
FLOW: Final = (
    ("received", "received/s", "Events that arrived: stored, rejected, parked and repeated ones"),
    ("validated", "validated/s", "Events that passed every check"),
    ("stored", "stored/s", "Ticks committed to PostgreSQL"),
    ("sent", "sent/s", "Ticks published to the integrated topics"),
    ("quarantined", "quarantined/s", "Events turned away, with their raw bytes and a reason"),
    ("delay", "to store, p95", "From our socket to the commit, 95 % of the last second’s batches"),
)
SPARK_WIDTH: Final = 84
SPARK_HEIGHT: Final = 22


@dataclass(slots=True, frozen=True)
class Row:
    """One line of the table as text, so that the page is useful before (and without) its scripts."""

    instrument: selectors.DeskInstrument
    last: str
    change: str
    direction: str
    reference_note: str
    bid: str
    ask: str
    volume: str
    age: str
    state: str
    spark: str


@never_cache
@require_safe
def desk(request: HttpRequest) -> HttpResponse:
    """Show the desk; a link's token is exchanged for a session first, and leaves the address."""
    token = request.GET.get("token")
    if token is not None:
        return _enter(request, token)
    if not request.user.is_authenticated:
        return redirect_to_login(request.get_full_path())
    now = time.time_ns()
    instruments = selectors.desk_instruments()
    sparks = selectors.sparklines([instrument.id for instrument in instruments], now)
    venues = selectors.venue_states(now)
    states = _states(now)
    context = {
        "rows": [_row(instrument, states.get(instrument.id), sparks[instrument.id], now) for instrument in instruments],
        "venues": venues,
        "flow": FLOW,
        "timeframes": protocol.TIMEFRAMES,
        "facts": {
            "instruments": [asdict(instrument) for instrument in instruments],
            "sparks": {
                number: [float(decimal_from_nanos(close)) for close in closes] for number, closes in sparks.items()
            },
            "zones": {venue.mic: venue.timezone for venue in venues},
            "now": now,
        },
    }
    return render(request, "distribution/desk.html", context)


def _enter(request: HttpRequest, token: str) -> HttpResponse:
    if not access.is_token(token):
        return render(request, "distribution/refused.html", status=403)
    if not request.user.is_authenticated:
        access.sign_in_desk(request)
    return HttpResponseRedirect("/")


def _states(now: int) -> dict[int, InstrumentState]:
    """Give what the running desk knows, else what PostgreSQL holds."""
    running = Desk.running()
    if running is not None and running.board.instruments:
        return dict(running.board.instruments)
    states = {state.id: state for state in selectors.board_snapshot(now).instruments}
    venues = {venue.mic: venue.state for venue in selectors.venue_states(now)}
    words = selectors.latest_words()
    for state in states.values():
        state.state = judged(state, now, venues.get(state.venue, "unknown"), words.get(state.id, "open"))
    return states


def _row(instrument: selectors.DeskInstrument, state: InstrumentState | None, closes: list[int], now: int) -> Row:
    state = state or InstrumentState(instrument.id, instrument.symbol)
    bid, ask = (state.quote[0], state.quote[2]) if state.quote else (None, None)
    change, direction = _change(state)
    note = {"close": "to the previous close", "open": "to the session’s open: no earlier close is stored"}
    return Row(
        instrument=instrument,
        last=_price(state.last, instrument.decimals),
        change=change,
        direction=direction,
        reference_note=note.get(state.reference_kind, "no earlier price"),
        bid=_price(bid, instrument.decimals),
        ask=_price(ask, instrument.decimals),
        volume=_quantity(state.volume),
        age=_age(now - state.ts_event) if state.ts_event else "–",
        state=state.state,
        spark=spark_points(closes),
    )


def _price(nanos: int | None, decimals: int) -> str:
    return "–" if nanos is None else f"{decimal_from_nanos(nanos):,.{decimals}f}"


def _change(state: InstrumentState) -> tuple[str, str]:
    if state.last is None or not state.reference or state.reference <= 0:
        return "–", "flat"
    share = round(Decimal(state.last - state.reference) / Decimal(state.reference) * 100, 2)
    direction = "up" if share > 0 else "down" if share < 0 else "flat"
    return f"{share:+.2f}%" if share else "0.00%", direction


def _quantity(nanos: int) -> str:
    number = decimal_from_nanos(nanos)
    for limit, divisor, unit in ((10**9, 10**9, "B"), (10**6, 10**6, "M")):
        if number >= limit:
            return f"{number / divisor:,.2f}{unit}"
    return f"{number:,.0f}"


def _age(nanoseconds: int) -> str:
    seconds = max(0, nanoseconds // 10**9)
    for divisor, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= divisor:
            return f"{seconds // divisor}{unit}"
    return f"{seconds}s"


def spark_points(closes: list[int]) -> str:
    """Give the points of an SVG polyline in a box of SPARK_WIDTH × SPARK_HEIGHT; empty below two closes."""
    if len(closes) < 2:
        return ""
    low, high = min(closes), max(closes)
    span = (high - low) or 1
    step = SPARK_WIDTH / (len(closes) - 1)
    inner = SPARK_HEIGHT - 4
    return " ".join(
        f"{index * step:.1f},{2 + inner - (close - low) * inner / span:.1f}" for index, close in enumerate(closes)
    )


@never_cache
@require_safe
def desk_bars(request: HttpRequest) -> HttpResponse:
    """Give bars for the chart as JSON: ascending unique times (ns), prices as decimal texts."""
    if not request.user.is_authenticated:
        return _problem(401, "unauthenticated", "sign in first")
    timeframe = request.GET.get("timeframe", "1m")
    number, limit = request.GET.get("instrument", ""), request.GET.get("limit", "500")
    if timeframe not in protocol.TIMEFRAMES:
        return _problem(
            400, "timeframe", f"timeframe must be one of {', '.join(protocol.TIMEFRAMES)}, was {timeframe[:20]!r}"
        )
    if not (_is_number(number) and _is_number(limit) and 1 <= int(limit) <= BAR_LIMIT and int(number) < 2**31):
        return _problem(400, "number", f"instrument must be an id and limit 1 to {BAR_LIMIT}")
    try:
        chart = selectors.chart_bars(int(number), timeframe, int(limit), time.time_ns())
    except Instrument.DoesNotExist:
        return _problem(404, "unknown_instrument", f"no active instrument {number}")
    return JsonResponse({"instrument": int(number), "timeframe": timeframe, **asdict(chart)})


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10


def _problem(status: int, code: str, message: str) -> JsonResponse:
    return JsonResponse({"code": code, "message": message}, status=status)
