"""Fan-out of latest values and short streams to many clients. Pure: no Django, no clock, no socket; time and send are arguments.

A *latest* channel sends each subject's newest row (updates in between are conflated, and counted); a *stream* channel sends every
row, from a ring. Clients that follow the same subjects form a group and share one encoded frame.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from distribution import protocol


class Sink(Protocol):
    """One client's way out."""

    def send(self, text: str) -> bool:
        """Send a frame; False means taken, but nothing more until `Hub.ready` is called."""

    def close(self, code: int, reason: str) -> None:
        """End the connection."""


@dataclass(slots=True)
class Rows:
    """What a group is due: encoded rows, how many updates they fold, and the numbers that a ring no longer held."""

    texts: list[str] = field(default_factory=list)
    conflated: int = 0
    gaps: list[tuple[int, int, int]] = field(default_factory=list)


class Channel(Protocol):
    """State of one channel; a subject is an instrument id, or 0 for the service itself."""

    def take_dirty(self) -> set[int]:
        """Give the subjects that changed since the last call."""

    def number(self, subject: int) -> int:
        """Give the number of the subject's newest update; 0: none yet."""

    def due(self, subjects: Iterable[int], cursor: dict[int, int]) -> Rows:
        """Give the rows after `cursor` (subject → number) and move it."""

    def snapshot(self, subjects: Iterable[int], since: int | None) -> tuple[list[str], bool]:
        """Give what a new client needs, and whether nothing after feed sequence `since` is missing from it."""


@dataclass(slots=True)
class _Latest:
    n: int = 0
    q: int = 0
    text: str | None = None


class LatestChannel:
    """Keeps one row per subject; `render` writes it when somebody is due, at most once per change."""

    def __init__(self, render: Callable[[int, int], str]) -> None:
        self._render = render
        self._entries: dict[int, _Latest] = {}
        self._dirty: set[int] = set()

    def touch(self, subject: int, *, q: int, updates: int = 1) -> None:
        """Mark a subject as changed by so many updates at feed sequence `q`."""
        entry = self._entries.get(subject)
        if entry is None:
            entry = self._entries[subject] = _Latest()
        entry.n += updates
        entry.q = q
        entry.text = None
        self._dirty.add(subject)

    def take_dirty(self) -> set[int]:
        dirty, self._dirty = self._dirty, set()
        return dirty

    def number(self, subject: int) -> int:
        entry = self._entries.get(subject)
        return 0 if entry is None else entry.n

    def due(self, subjects: Iterable[int], cursor: dict[int, int]) -> Rows:
        rows = Rows()
        for subject in subjects:
            entry = self._entries[subject]
            folded = entry.n - cursor.get(subject, 0) - 1
            if folded >= 0:
                rows.texts.append(entry.text or self._written(subject, entry))
                rows.conflated += folded
                cursor[subject] = entry.n
        return rows

    def snapshot(self, subjects: Iterable[int], since: int | None) -> tuple[list[str], bool]:
        known = ((subject, self._entries[subject]) for subject in subjects if subject in self._entries)
        after = -1 if since is None else since
        return [
            entry.text or self._written(subject, entry) for subject, entry in known if entry.q > after
        ], since is not None

    def _written(self, subject: int, entry: _Latest) -> str:
        entry.text = self._render(subject, entry.n)
        return entry.text


class Block:
    """Rows of one subject that arrived together; written on first use, since most subjects have no reader."""

    __slots__ = ("_render", "_texts", "at", "count", "first", "q")

    def __init__(self, *, first: int, count: int, q: int, at: int, render: Callable[[int], list[str]]) -> None:
        self.first = first
        self.count = count
        self.q = q
        self.at = at
        self._render: Callable[[int], list[str]] | None = render
        self._texts: list[str] = []

    @property
    def last(self) -> int:
        """Number of the last row."""
        return self.first + self.count - 1

    def texts(self) -> list[str]:
        """Give the rows as JSON text."""
        if self._render is not None:
            self._texts = self._render(self.first)
            self._render = None
        return self._texts


class Ring:
    """The newest blocks of one subject, bounded in rows and age."""

    __slots__ = ("blocks", "dropped_q", "last", "rows")

    def __init__(self) -> None:
        self.blocks: deque[Block] = deque()
        self.rows = 0
        self.last = 0
        self.dropped_q = -1

    def append(self, block: Block, *, row_limit: int, oldest: int) -> None:
        """Add a block and drop what exceeds the row limit or was added before `oldest` ns; the newest block always stays."""
        self.blocks.append(block)
        self.rows += block.count
        self.last = block.last
        while len(self.blocks) > 1 and (self.rows > row_limit or self.blocks[0].at < oldest):
            gone = self.blocks.popleft()
            self.rows -= gone.count
            self.dropped_q = gone.q

    def after(self, number: int) -> tuple[int, list[str]]:
        """Give the number of the first row held after `number`, and the rows from there."""
        wanted: list[Block] = []
        for block in reversed(self.blocks):
            if block.last <= number:
                break
            wanted.append(block)
        if not wanted:
            return self.last + 1, []
        first = wanted[-1].first
        texts = [text for block in reversed(wanted) for text in block.texts()]
        if first <= number:
            return number + 1, texts[number + 1 - first :]
        return first, texts

    def newest(self, count: int) -> list[str]:
        """Give up to `count` of the newest rows."""
        return self.after(max(0, self.last - count))[1]

    def since(self, q: int) -> tuple[list[str], bool]:
        """Give the rows after feed sequence `q`, and whether the ring still reaches back to it."""
        return [text for block in self.blocks if block.q > q for text in block.texts()], self.dropped_q <= q


class StreamChannel:
    """Keeps a ring per subject. A ring of pseudo-subject 0 serves channels without instruments."""

    def __init__(self, *, row_limit: int, max_age_ns: int | None, snapshot_rows: int) -> None:
        self._row_limit = row_limit
        self._max_age_ns = max_age_ns
        self._snapshot_rows = snapshot_rows
        self._rings: dict[int, Ring] = {}
        self._dirty: set[int] = set()

    def append(self, subject: int, *, count: int, q: int, at: int, render: Callable[[int], list[str]]) -> None:
        """Add `count` rows; `render(first)` writes them, numbered from `first`, when somebody reads them."""
        ring = self._rings.get(subject)
        if ring is None:
            ring = self._rings[subject] = Ring()
        block = Block(first=ring.last + 1, count=count, q=q, at=at, render=render)
        oldest = at - self._max_age_ns if self._max_age_ns is not None else 0
        ring.append(block, row_limit=self._row_limit, oldest=oldest)
        self._dirty.add(subject)

    def take_dirty(self) -> set[int]:
        dirty, self._dirty = self._dirty, set()
        return dirty

    def number(self, subject: int) -> int:
        ring = self._rings.get(subject)
        return 0 if ring is None else ring.last

    def due(self, subjects: Iterable[int], cursor: dict[int, int]) -> Rows:
        rows = Rows()
        for subject in subjects:
            ring = self._rings[subject]
            before = cursor.get(subject, 0)
            first, texts = ring.after(before)
            if first > before + 1:
                rows.gaps.append((subject, before + 1, first - 1))
            rows.texts += texts
            cursor[subject] = ring.last
        return rows

    def snapshot(self, subjects: Iterable[int], since: int | None) -> tuple[list[str], bool]:
        rings = [self._rings[subject] for subject in subjects if subject in self._rings]
        if since is not None:
            parts = [ring.since(since) for ring in rings]
            if all(complete for _, complete in parts):
                return [text for texts, _ in parts for text in texts], True
        return [text for ring in rings for text in ring.newest(self._snapshot_rows)], False


@dataclass(slots=True, eq=False)
class Group:
    """Clients of one channel that follow the same subjects at the same rate."""

    channel: str
    subjects: frozenset[int]
    every: int
    clients: set["Client"] = field(default_factory=set)
    pending: set[int] = field(default_factory=set)
    cursor: dict[int, int] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, frozenset[int], int]:
        """What its members have in common."""
        return self.channel, self.subjects, self.every


@dataclass(slots=True)
class Ledger:
    """Every update of a followed subject ends in exactly one of these counts, or is still waiting."""

    delivered: int = 0
    conflated: int = 0
    lost: int = 0


@dataclass(slots=True, eq=False)
class Client:
    """One connection: what it follows, what it could not take yet, and what became of every update."""

    sink: Sink
    groups: dict[str, Group] = field(default_factory=dict)
    ledgers: dict[str, Ledger] = field(default_factory=dict)
    # channel → subject → number the client holds; only subjects that it missed while blocked. Bounded by what it follows.
    missed: dict[str, dict[int, int]] = field(default_factory=dict)
    control: deque[str] = field(default_factory=deque)
    window: int = 0
    unacknowledged: deque[int] = field(default_factory=deque)
    is_busy: bool = False
    blocked_since: int | None = None
    is_closed: bool = False

    @property
    def is_blocked(self) -> bool:
        """True while its socket, or its acknowledge window, is full."""
        return self.is_busy or (self.window > 0 and len(self.unacknowledged) >= self.window)


class Hub:
    """Knows channels and clients; whoever owns the data touches channels and calls `flush`."""

    def __init__(self, *, epoch: str, channels: Mapping[str, Channel]) -> None:
        self.epoch = epoch
        self.channels = channels
        self.directory: dict[str, int] = {}
        self.symbols: dict[int, str] = {}
        self.clients: set[Client] = set()
        self.q = 0
        self.frames = 0
        self.slow_closed = 0
        self._groups: dict[tuple[str, frozenset[int], int], Group] = {}
        self._flushes = 0

    def advance(self) -> int:
        """Begin a new feed sequence and give it."""
        self.q += 1
        return self.q

    def name(self, symbol: str, subject: int) -> None:
        """Let clients follow `subject` under this symbol."""
        known = self.symbols.get(subject)
        if known is not None and known != symbol:
            self.directory.pop(known, None)
        self.directory[symbol] = subject
        self.symbols[subject] = symbol

    # -- clients -------------------------------------------------------------------------------------------------------

    def connect(self, sink: Sink) -> Client:
        """Add a client that follows nothing yet."""
        client = Client(sink)
        self.clients.add(client)
        return client

    def disconnect(self, client: Client) -> None:
        """Forget a client; calling it twice is fine."""
        client.is_closed = True
        self.clients.discard(client)
        for group in list(client.groups.values()):
            self._leave(client, group)

    def subscribe(self, client: Client, request: protocol.Subscribe, now: int) -> None:
        """Follow symbols, answer with `ok`, then with a snapshot or the rows since `request.since`.

        Raises ProtocolError when the channel, mode or rate does not exist or the limit of symbols is passed.
        """
        self._check(request)
        added, rejected = self._resolve(request)
        present = client.groups.get(request.ch)
        subjects = frozenset(subject for _, subject in added) | (present.subjects if present else frozenset())
        if len(subjects) > protocol.SYMBOL_LIMIT:
            raise protocol.ProtocolError(
                "limits", f"at most {protocol.SYMBOL_LIMIT} symbols a channel", request=request.id
            )
        self._join(client, request.ch, subjects, max(1, round(protocol.FLUSH_HZ / request.hz)), now)
        self.control(client, protocol.ok(request.id, added, rejected), now)
        if request.snap or request.since is not None:
            self._send_snapshot(client, request, [subject for _, subject in added], now)

    def unsubscribe(self, client: Client, request: protocol.Unsubscribe, now: int) -> None:
        """Stop following symbols of a channel (none named: all) and answer with `ok`."""
        group = client.groups.get(request.ch)
        gone = {self.directory.get(symbol) for symbol in request.sym}
        keep = (
            frozenset(subject for subject in group.subjects if subject not in gone)
            if group and request.sym
            else frozenset()
        )
        if group is not None and keep:
            self._join(client, request.ch, keep, group.every, now)
        elif group is not None:
            self._leave(client, group)
        missed = client.missed.get(request.ch, {})
        client.missed[request.ch] = {subject: number for subject, number in missed.items() if subject in keep}
        self.control(client, protocol.ok(request.id), now)

    def configure(self, client: Client, request: protocol.Configure, now: int) -> None:
        """Set the acknowledge window and answer with `ok`. Raises ProtocolError when it is out of range."""
        if not 0 <= request.ack <= 1000:
            raise protocol.ProtocolError("schema", f"ack must be 0 to 1000, was {request.ack}", request=request.id)
        self._settle_missed(client, now)
        client.window = request.ack
        client.unacknowledged.clear()
        self.control(client, protocol.ok(request.id), now)
        self._resume(client, now)

    def acknowledge(self, client: Client, frame: int, now: int) -> None:
        """Note that data frames up to this number have arrived; a full window opens again."""
        self._settle_missed(client, now)
        while client.unacknowledged and client.unacknowledged[0] <= frame:
            client.unacknowledged.popleft()
        self._resume(client, now)

    def ready(self, client: Client, now: int) -> None:
        """Note that a sink takes frames again and send what waited: control frames, then what was missed."""
        self._settle_missed(client, now)
        client.is_busy = False
        self._resume(client, now)

    def _settle_missed(self, client: Client, now: int) -> None:
        """Bring the groups of a blocked client up to date while it still is, so that catching up and the next frame meet exactly."""
        for channel, missed in list(client.missed.items()):
            group = client.groups.get(channel)
            if missed and group is not None and client.is_blocked:
                self._settle(group, now)

    def _resume(self, client: Client, now: int) -> None:
        while client.control and not client.is_busy and not client.is_closed:
            self._transmit(client, client.control.popleft(), now)
        if client.is_blocked or client.is_closed:
            return
        since, client.blocked_since = client.blocked_since, None
        for channel in [name for name, missed in client.missed.items() if missed]:
            if not client.is_blocked:
                self._catch_up(client, channel, now, since)

    def control(self, client: Client, text: str, now: int) -> None:
        """Send a frame that may not be conflated; a client that lets too many of them wait is cut."""
        if client.is_closed:
            return
        if not client.is_busy:
            self._transmit(client, text, now)
        elif len(client.control) < protocol.CONTROL_FRAMES_WAITING:
            client.control.append(text)
        else:
            self._cut(client)

    def broadcast(self, text: str, now: int) -> None:
        """Send a control frame to everybody."""
        for client in list(self.clients):
            self.control(client, text, now)

    def heartbeat(self, now: int) -> None:
        """Send a heartbeat to everybody that takes frames; a blocked client needs no proof of life, it needs room."""
        text = protocol.heartbeat(now=now, q=self.q)
        for client in list(self.clients):
            if not client.is_busy:
                self.control(client, text, now)

    # -- the flush -----------------------------------------------------------------------------------------------------

    def flush(self, now: int, delay_ms: int | None = None) -> None:
        """Send every group what changed; call it every `protocol.FLUSH_S` seconds."""
        self._flushes += 1
        changed = {name: channel.take_dirty() for name, channel in self.channels.items()}
        for group in list(self._groups.values()):
            dirty = changed[group.channel]
            if dirty:
                group.pending |= dirty & group.subjects
            if group.pending and self._flushes % group.every == 0:
                self._send_group(group, now, delay_ms)

    def cut_slow(self, now: int) -> None:
        """Close clients that have been blocked for longer than `protocol.SLOW_S`."""
        limit = now - protocol.SLOW_S * 1_000_000_000
        for client in list(self.clients):
            if client.blocked_since is not None and client.blocked_since < limit:
                self._cut(client)

    def _send_group(self, group: Group, now: int, delay_ms: int | None) -> None:
        for client in group.clients:
            if client.is_blocked:
                missed = client.missed.setdefault(group.channel, {})
                for subject in group.pending:
                    missed.setdefault(subject, group.cursor.get(subject, 0))
        rows = self.channels[group.channel].due(group.pending, group.cursor)
        group.pending = set()
        takers = [client for client in group.clients if not client.is_blocked]
        if rows.texts and takers:
            self._send_rows(takers, group.channel, rows, now, delay_ms)

    def _send_rows(self, takers: list[Client], channel: str, rows: Rows, now: int, delay_ms: int | None) -> None:
        self.frames += 1
        text = protocol.data(channel=channel, frame=self.frames, q=self.q, delay_ms=delay_ms, rows=rows.texts)
        gaps = [
            protocol.gap(channel=channel, symbol=self.symbols.get(subject, "*"), first=first, last=last, at="client")
            for subject, first, last in rows.gaps
        ]
        for client in takers:
            for gap in gaps:
                self.control(client, gap, now)
            ledger = client.ledgers[channel]
            ledger.delivered += len(rows.texts)
            ledger.conflated += rows.conflated
            ledger.lost += sum(last - first + 1 for _, first, last in rows.gaps)
            if client.window:
                client.unacknowledged.append(self.frames)
            self._transmit(client, text, now)

    def _catch_up(self, client: Client, channel: str, now: int, since: int | None) -> None:
        cursor = client.missed.pop(channel)
        rows = self.channels[channel].due(list(cursor), cursor)
        if since is not None and (rows.conflated or rows.gaps):
            self.control(client, protocol.lag(skipped=rows.conflated, ms=(now - since) // 1_000_000), now)
        if rows.texts:
            self._send_rows([client], channel, rows, now, None)

    def _transmit(self, client: Client, text: str, now: int) -> None:
        if client.is_closed:
            return
        if client.is_busy:
            client.control.append(text)
            return
        client.is_busy = not client.sink.send(text)
        if client.is_blocked and client.blocked_since is None:
            client.blocked_since = now

    def _cut(self, client: Client) -> None:
        self.slow_closed += 1
        self.disconnect(client)
        client.sink.close(protocol.CLOSE_SLOW, f"nothing was taken for {protocol.SLOW_S} s")

    # -- groups --------------------------------------------------------------------------------------------------------

    def _check(self, request: protocol.Subscribe) -> None:
        if request.ch not in self.channels:
            raise protocol.ProtocolError("unknown_channel", f"no channel {request.ch[:40]!r}", request=request.id)
        natural = "all" if isinstance(self.channels[request.ch], StreamChannel) else "latest"
        if request.mode not in (None, natural):
            raise protocol.ProtocolError(
                "mode", f"{request.ch} has mode {natural!r}, was {request.mode!r}", request=request.id
            )
        if not 1 <= request.hz <= protocol.FLUSH_HZ:
            raise protocol.ProtocolError(
                "schema", f"hz must be 1 to {protocol.FLUSH_HZ}, was {request.hz}", request=request.id
            )
        if len(request.sym) > protocol.SYMBOL_LIMIT:
            raise protocol.ProtocolError(
                "limits", f"at most {protocol.SYMBOL_LIMIT} symbols a channel", request=request.id
            )

    def _resolve(self, request: protocol.Subscribe) -> tuple[list[tuple[str, int]], list[tuple[str, str]]]:
        if request.ch in protocol.SERVICE_CHANNELS:
            return [("*", 0)], []
        wanted = list(self.directory) if "*" in request.sym else list(dict.fromkeys(request.sym))
        added = [(symbol, self.directory[symbol]) for symbol in wanted if symbol in self.directory]
        rejected = [(symbol[:64], "unknown") for symbol in wanted if symbol not in self.directory]
        return added, rejected

    def _join(self, client: Client, channel: str, subjects: frozenset[int], every: int, now: int) -> None:
        present = client.groups.get(channel)
        if present is not None and present.key == (channel, subjects, every):
            return
        if present is not None:
            self._settle(present, now)
            self._leave(client, present)
        if not subjects:
            return
        group = self._groups.get((channel, subjects, every))
        if group is None:
            group = self._groups[channel, subjects, every] = Group(channel, subjects, every)
            numbers = self.channels[channel]
            group.cursor = {subject: numbers.number(subject) for subject in subjects}
        else:
            # Members are brought up to date first, so that the newcomer's snapshot and the next frame meet exactly.
            self._settle(group, now)
        group.clients.add(client)
        client.groups[channel] = group
        client.ledgers.setdefault(channel, Ledger())

    def _settle(self, group: Group, now: int) -> None:
        channel = self.channels[group.channel]
        group.pending |= {
            subject for subject in group.subjects if channel.number(subject) != group.cursor.get(subject, 0)
        }
        if group.pending:
            self._send_group(group, now, None)

    def _leave(self, client: Client, group: Group) -> None:
        group.clients.discard(client)
        client.groups.pop(group.channel, None)
        if not group.clients:
            self._groups.pop(group.key, None)

    def _send_snapshot(self, client: Client, request: protocol.Subscribe, subjects: list[int], now: int) -> None:
        since = request.since.q if request.since is not None and request.since.e == self.epoch else None
        texts, recovered = self.channels[request.ch].snapshot(subjects, since)
        self.control(client, protocol.snap(channel=request.ch, q=self.q, recovered=recovered, rows=texts), now)
