"""The websocket protocol `md1`: what clients may say, how our frames are written, limits and close codes. Pure; docs/websocket.md.

Rows are encoded by whoever owns the data and passed in as JSON text, so that one encoding serves every client.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

VERSION: Final = 1
SUBPROTOCOL: Final = "md1.json"
TIMEFRAMES: Final = ("1m", "5m", "15m", "1h", "4h", "1d")

QUOTES: Final = "quotes"
TRADES: Final = "trades"
EVENTS: Final = "events"
PIPELINE: Final = "pipeline"
MINUTES: Final = "minutes"
BAR_CHANNELS: Final = tuple(f"bars.{timeframe}" for timeframe in TIMEFRAMES)
CHANNELS: Final = (QUOTES, TRADES, MINUTES, *BAR_CHANNELS, EVENTS, PIPELINE)
# These describe the service, not an instrument: they take no symbols.
SERVICE_CHANNELS: Final = frozenset({EVENTS, PIPELINE})

_BAR_COLUMNS: Final = ("id", "n", "start", "open", "high", "low", "close", "volume", "trades", "revision", "reason")
COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    QUOTES: (
        "id", "n", "ts", "last", "size", "bid", "bid_size", "ask", "ask_size", "volume", "reference", "reference_kind", "state",
    ),
    TRADES: ("id", "n", "ts", "price", "size", "conditions", "flags"),
    MINUTES: ("id", "n", "start", "open", "high", "low", "close", "volume", "trades"),
    **dict.fromkeys(BAR_CHANNELS, _BAR_COLUMNS),
    EVENTS: ("id", "n", "ts", "kind", "severity", "instrument", "text", "link"),
    PIPELINE: ("id", "n", "ts", "received", "validated", "stored", "sent", "quarantined", "delay_ms", "unsent"),
}  # fmt: skip

FLUSH_HZ: Final = 20
FLUSH_S: Final = 1 / FLUSH_HZ
HEARTBEAT_S: Final = 5
# A client whose socket accepts nothing for this long is cut: it would be shown minutes-old prices when it wakes.
SLOW_S: Final = 10
SUBSCRIBE_WITHIN_S: Final = 5
SYMBOL_LIMIT: Final = 500
MESSAGE_BYTES_LIMIT: Final = 16 * 1024
MESSAGES_PER_S: Final = 5
MESSAGE_BURST: Final = 20
CONNECTIONS_PER_USER: Final = 20
CONNECTIONS: Final = 5_000
CONTROL_FRAMES_WAITING: Final = 64
STREAM_ROWS: Final = 5_000
STREAM_SECONDS: Final = 30
SNAPSHOT_ROWS: Final = 50

CLOSE_PROTOCOL: Final = 4400
CLOSE_AUTH: Final = 4401
CLOSE_ENTITLEMENT: Final = 4403
CLOSE_SLOW: Final = 4008
CLOSE_LIMITS: Final = 4029
CLOSE_RESTART: Final = 1012


class Since(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a client stopped: the hub's epoch and the last feed sequence it holds."""

    e: str
    q: int


class Subscribe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="sub"):
    """Ask for a channel; symbols `["*"]` means every instrument."""

    id: int
    ch: str
    sym: list[str] = []
    mode: str | None = None
    hz: int = FLUSH_HZ
    snap: bool = True
    since: Since | None = None


class Unsubscribe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="unsub"):
    """Give up symbols of a channel; none named means all."""

    id: int
    ch: str
    sym: list[str] = []


class Configure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="set"):
    """Choose the acknowledge window: the server sends at most `ack` data frames beyond the last acknowledged; 0 is none."""

    id: int
    ack: int = 0


class Acknowledge(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="ack"):
    """All data frames up to number `n` have arrived."""

    n: int


class Ping(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="ping"):
    """Answered by a heartbeat that carries the same id."""

    id: int = 0


Request = Subscribe | Unsubscribe | Configure | Acknowledge | Ping
OPERATIONS: Final = ("sub", "unsub", "set", "ack", "ping")
_requests: Final[msgspec.json.Decoder[Request]] = msgspec.json.Decoder(Request)
_probe = msgspec.json.Decoder(dict[str, Any])


class ProtocolError(Exception):
    """A message of a client that cannot be acted on; `fatal` ones end the connection."""

    def __init__(self, code: str, message: str, *, request: int | None = None, fatal: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.request = request
        self.fatal = fatal


def read_request(text: str | None) -> Request:
    """Decode one message of a client; None stands for a binary one.

    Raises ProtocolError: `too_large` and `malformed` are fatal; `unknown_op` and `schema` are answered and survived.
    """
    if text is None:
        raise ProtocolError("malformed", f"{SUBPROTOCOL} is text", fatal=True)
    if len(text) > MESSAGE_BYTES_LIMIT or len(text.encode("utf-8", "surrogatepass")) > MESSAGE_BYTES_LIMIT:
        raise ProtocolError("too_large", f"a message may have {MESSAGE_BYTES_LIMIT} bytes", fatal=True)
    try:
        return _requests.decode(text)
    except msgspec.ValidationError as error:
        raise _explained(text, str(error)) from None
    except (msgspec.DecodeError, RecursionError):
        raise ProtocolError("malformed", "not a JSON object", fatal=True) from None


def _explained(text: str, reason: str) -> ProtocolError:
    """Tell an unknown operation from a known one with wrong fields, and name the request that it answers."""
    try:
        said = _probe.decode(text)
    except msgspec.DecodeError:
        return ProtocolError("malformed", "not a JSON object", fatal=True)
    number = said.get("id")
    request = number if isinstance(number, int) and not isinstance(number, bool) else None
    if said.get("op") not in OPERATIONS:
        return ProtocolError("unknown_op", f"op must be one of {', '.join(OPERATIONS)}", request=request)
    return ProtocolError("schema", reason, request=request)


def encode(value: Any) -> str:
    """Write a value as JSON text."""
    return msgspec.json.encode(value).decode()


def welcome(*, epoch: str, now: int) -> str:
    """Write the first frame: version, epoch, server time (ns), intervals (s, ms) and limits."""
    limits = {
        "symbols": SYMBOL_LIMIT,
        "bytes": MESSAGE_BYTES_LIMIT,
        "messages_per_s": MESSAGES_PER_S,
        "connections": CONNECTIONS_PER_USER,
        "subscribe_s": SUBSCRIBE_WITHIN_S,
    }
    flush = int(FLUSH_S * 1000)
    return encode(
        {"t": "welcome", "v": VERSION, "e": epoch, "now": now, "hb": HEARTBEAT_S, "flush": flush, "lim": limits}
    )


def ok(request: int, added: Sequence[tuple[str, int]] = (), rejected: Sequence[tuple[str, str]] = ()) -> str:
    """Answer a request: which symbols are now followed (with their numeric ids) and which are not, and why."""
    return encode({"t": "ok", "id": request, "add": added, "rej": rejected})


def err(error: ProtocolError) -> str:
    """Answer a message that could not be acted on."""
    return encode({"t": "err", "id": error.request, "code": error.code, "msg": str(error)})


def data(*, channel: str, frame: int, q: int, delay_ms: int | None, rows: Iterable[str]) -> str:
    """Write a data frame around rows that are JSON already; `ms` is the delay since the broker took the oldest of them."""
    delay = "" if delay_ms is None else f',"ms":{delay_ms}'
    return f'{{"t":"data","ch":"{channel}","f":{frame},"q":{q}{delay},"rows":[{",".join(rows)}]}}'


def snap(*, channel: str, q: int, recovered: bool, rows: Iterable[str]) -> str:
    """Write a snapshot; `rec` true means: with what you held, this is everything up to `q`, nothing was skipped."""
    columns = encode(COLUMNS[channel])
    said = "true" if recovered else "false"
    return f'{{"t":"snap","ch":"{channel}","q":{q},"rec":{said},"cols":{columns},"rows":[{",".join(rows)}]}}'


def status(*, symbol: str, state: str, reason: str, ts: int) -> str:
    """Say that an instrument (or `*`, the feed itself) is in a new state since `ts` ns."""
    return encode({"t": "status", "sym": symbol, "state": state, "reason": reason, "ts": ts})


def gap(*, channel: str, symbol: str, first: int, last: int, at: str) -> str:
    """Say that numbers first…last of a symbol never came: `at` the `feed` (our input) or the `client` (our ring was too short)."""
    return encode({"t": "gap", "ch": channel, "sym": symbol, "q": (first, last), "at": at})


def lag(*, skipped: int, ms: int) -> str:
    """Say that a client was too slow for `ms` and that `skipped` updates were folded into newer ones meanwhile."""
    return encode({"t": "lag", "skip": skipped, "ms": ms})


def heartbeat(*, now: int, q: int, request: int | None = None) -> str:
    """Write a heartbeat, or the answer to a ping."""
    return encode(
        {"t": "hb", "now": now, "q": q} if request is None else {"t": "hb", "now": now, "q": q, "id": request}
    )


def bye(*, code: int, reason: str) -> str:
    """Write the last frame before a close."""
    return encode({"t": "bye", "code": code, "msg": reason})
