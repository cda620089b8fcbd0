"""Raw bytes of a quarantined event made readable: pretty JSON, the row of an Arrow stream, else a hex dump. Pure.

What comes out is text that templates escape; nothing here trusts the bytes.
"""

import json
from dataclasses import dataclass
from typing import Final

SHOWN_BYTES: Final = 16_384
_ARROW_MARK: Final = b"\xff\xff\xff\xff"
# Streams refused whole may end the process that reads them (a bad offset is a segmentation fault): bytes is all one gets.
_UNSOUND_ARROW: Final = frozenset(
    {"poison", "arrow_schema", "arrow_invalid", "arrow_rows", "too_large", "unsupported_version"}
)
_DEEPEST: Final = 64
_HEX_WIDTH: Final = 16


@dataclass(frozen=True, slots=True)
class Readable:
    """`form` is JSON, Arrow, text or bytes; `text` is what to show, cut at SHOWN_BYTES; `size` counts all bytes."""

    form: str
    text: str
    size: int
    is_cut: bool


def readable(raw: bytes, code: str) -> Readable:
    """Make the raw bytes of an event turned away for `code` readable; never raises, whatever they are."""
    if raw.startswith(_ARROW_MARK) and code not in _UNSOUND_ARROW:
        shown = _arrow(raw)
        if shown is not None:
            return Readable("Arrow", shown, len(raw), False)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return Readable("bytes", _hex(raw[: SHOWN_BYTES // 4]), len(raw), len(raw) > SHOWN_BYTES // 4)
    pretty = _pretty(text)
    shown = text if pretty is None else pretty
    return Readable("text" if pretty is None else "JSON", shown[:SHOWN_BYTES], len(raw), len(shown) > SHOWN_BYTES)


def _pretty(text: str) -> str | None:
    if len(text) > SHOWN_BYTES * 4 or text.count("{") + text.count("[") > _DEEPEST * 16:
        return None
    try:
        # Pairs and untouched number texts: duplicate keys and 1e400 must stay visible, they may be the very fault.
        value = json.loads(
            text, object_pairs_hook=_Pairs, parse_float=_Verbatim, parse_int=_Verbatim, parse_constant=_Verbatim
        )
        return _write(value, 0)
    except (ValueError, RecursionError):
        return None


class _Pairs(list[tuple[str, object]]):
    """An object's members in order, repeated keys included."""


class _Verbatim(str):
    """A number as it was written."""

    __slots__ = ()


def _write(value: object, depth: int) -> str:
    if depth > _DEEPEST:
        raise ValueError("nested too deep to show")
    if isinstance(value, _Verbatim):
        return str(value)
    pad, end = "  " * (depth + 1), "  " * depth
    if isinstance(value, _Pairs):
        members = ",\n".join(
            f"{pad}{json.dumps(key, ensure_ascii=False)}: {_write(item, depth + 1)}" for key, item in value
        )
        return f"{{\n{members}\n{end}}}" if value else "{}"
    if isinstance(value, list):
        items = ",\n".join(f"{pad}{_write(item, depth + 1)}" for item in value)
        return f"[\n{items}\n{end}]" if value else "[]"
    return json.dumps(value, ensure_ascii=False)


def _arrow(raw: bytes) -> str | None:
    import pyarrow as pa  # heavy, and only a quarantine page needs it

    try:
        with pa.ipc.open_stream(raw) as reader:
            table = reader.read_all()
            table.validate(full=True)
            rows = table.slice(0, 20).to_pylist()
            metadata = {
                key.decode("utf-8", "replace"): value.decode("utf-8", "replace")
                for key, value in (reader.schema.metadata or {}).items()
            }
    except (pa.ArrowException, ValueError, OSError):
        return None
    lines = [f"{key} = {value}" for key, value in metadata.items()]
    for number, row in enumerate(rows):
        lines.append(f"— row {number + 1} of {table.num_rows} —")
        lines.extend(f"{name:>12}  {value!r}" for name, value in row.items())
    return "\n".join(lines)[:SHOWN_BYTES]


def _hex(raw: bytes) -> str:
    lines = []
    for at in range(0, len(raw), _HEX_WIDTH):
        part = raw[at : at + _HEX_WIDTH]
        printable = "".join(chr(byte) if 32 <= byte < 127 else "·" for byte in part)
        lines.append(f"{at:08x}  {part.hex(' '):<47}  {printable}")
    return "\n".join(lines)
