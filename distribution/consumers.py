"""The Channels consumer of `/ws/v1/market-data`: a socket as a sink of the hub, and the checks at its door.

Frames do not pass Channels' dispatch nor the session middleware: both cost more than the frame. They go to the server's own `send`,
which `config.asgi` puts into the scope.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import coroutine
from typing import Any, Final, cast

from channels.consumer import AsyncConsumer, get_handler_name
from channels.exceptions import StopConsumer

from distribution import protocol
from distribution.access import is_same_origin
from distribution.feeds import Desk
from distribution.hub import Client

Send = Callable[[dict[str, Any]], Awaitable[None]]
SERVER_SEND: Final = "market_data.send"


class Socket:
    """A sink of the hub: sends at once where the server takes it, and becomes a task where it does not."""

    def __init__(self, send: Send, on_ready: Callable[[], None]) -> None:
        self._send = send
        self._on_ready = on_ready
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    def send(self, text: str) -> bool:
        """Hand a frame to the server; False while its buffer is full."""
        if self._is_closed:
            return True
        sending = cast("Coroutine[Any, Any, None]", self._send({"type": "websocket.send", "text": text}))
        try:
            # A send that need not wait is finished by its first step; that saves a task per frame and client.
            waits_for = sending.send(None)
        except StopIteration:
            return True
        except Exception:  # noqa: BLE001 - the peer is gone: its disconnect message is on the way
            self._is_closed = True
            return True
        self._task = asyncio.get_running_loop().create_task(self._finish(sending, waits_for))
        return False

    async def _finish(self, sending: Coroutine[Any, Any, None], waits_for: Any) -> None:
        try:
            await _rest(sending, waits_for)
        except Exception:  # noqa: BLE001 - as above
            self._is_closed = True
            return
        self._on_ready()

    def close(self, code: int, reason: str) -> None:
        """Say goodbye and close, without waiting for room in a full buffer."""
        if self._is_closed:
            return
        self._is_closed = True
        self._task, waiting = asyncio.get_running_loop().create_task(self._close(code, reason)), self._task
        if waiting is not None:
            waiting.cancel()

    async def _close(self, code: int, reason: str) -> None:
        try:
            async with asyncio.timeout(2):
                await self._send({"type": "websocket.send", "text": protocol.bye(code=code, reason=reason)})
                await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except Exception:  # noqa: BLE001 - a peer that takes nothing cannot be told; the server's keep-alive drops it
            return


@coroutine
def _rest(sending: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """Go on with a coroutine that has been stepped once and waits for something."""
    try:
        yield waits_for
    except BaseException as error:
        try:
            sending.throw(error)
        except StopIteration:  # it has cleaned up and ended
            return
        raise
    yield from sending


class MarketDataConsumer(AsyncConsumer):  # type: ignore[misc]  # Channels ships no types
    """One connection of the live protocol (docs/websocket.md)."""

    client: Client | None = None
    socket: Socket | None = None

    async def __call__(
        self, scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Send
    ) -> None:
        """Serve one connection; the channel layer is not used, so that Valkey may be down."""
        self.scope = scope
        self.base_send = send
        self.server_send: Send = scope.get(SERVER_SEND, send)
        self.user_id = 0
        self._allowance = float(protocol.MESSAGE_BURST)
        self._allowed_at = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        try:
            while True:
                await self.dispatch(await receive())
        except StopConsumer:
            pass
        finally:
            self._leave()

    async def dispatch(self, message: dict[str, Any]) -> None:
        """Call the handler without the thread hop that looks after database connections: there are none here."""
        await getattr(self, get_handler_name(message))(message)

    async def websocket_connect(self, message: dict[str, Any]) -> None:
        """Check origin, user and limits, then welcome."""
        if not is_same_origin(self.scope):
            await self.base_send({"type": "websocket.close"})
            raise StopConsumer
        offered = self.scope.get("subprotocols") or []
        chosen = protocol.SUBPROTOCOL if protocol.SUBPROTOCOL in offered else None
        await self.base_send({"type": "websocket.accept", "subprotocol": chosen})
        user = self.scope.get("user")
        if offered and chosen is None:
            return await self._refuse(protocol.CLOSE_PROTOCOL, f"only {protocol.SUBPROTOCOL} is spoken here")
        if user is None or not user.is_authenticated or not user.is_active:
            return await self._refuse(protocol.CLOSE_AUTH, "sign in first")
        desk = self.desk = Desk.current()
        if desk.per_user[user.pk] >= protocol.CONNECTIONS_PER_USER or len(desk.hub.clients) >= protocol.CONNECTIONS:
            return await self._refuse(protocol.CLOSE_LIMITS, "too many connections")
        self._enter(desk, user.pk)
        return None

    def _enter(self, desk: Desk, user_id: int) -> None:
        self.user_id = user_id
        desk.per_user[user_id] += 1
        self.socket = Socket(self.server_send, self._ready)
        self.client = desk.hub.connect(self.socket)
        session = self.scope.get("session")
        desk.identities[self] = (user_id, getattr(session, "session_key", "") or "")
        now = time.time_ns()
        desk.hub.control(self.client, protocol.welcome(epoch=desk.hub.epoch, now=now), now)
        desk.hub.control(self.client, desk.status_text(), now)
        self._timer = desk.loop.call_later(protocol.SUBSCRIBE_WITHIN_S, self._expect_subscription)

    async def _refuse(self, code: int, reason: str) -> None:
        await self.base_send({"type": "websocket.send", "text": protocol.bye(code=code, reason=reason)})
        await self.base_send({"type": "websocket.close", "code": code, "reason": reason})

    async def websocket_receive(self, message: dict[str, Any]) -> None:
        """Act on one message of the client."""
        if self.client is None or self.client.is_closed:
            return
        now = time.time_ns()
        try:
            self._spend()
            self._act(protocol.read_request(message.get("text")), now)
        except protocol.ProtocolError as error:
            self.desk.hub.control(self.client, protocol.err(error), now)
            if error.fatal:
                self.close(protocol.CLOSE_LIMITS if error.code == "rate" else protocol.CLOSE_PROTOCOL, str(error))

    async def websocket_disconnect(self, message: dict[str, Any]) -> None:
        """End; what is left is cleaned up by `__call__`."""
        raise StopConsumer

    def close(self, code: int, reason: str) -> None:
        """End the connection with one of the protocol's close codes."""
        if self.client is not None and self.socket is not None:
            self.desk.hub.disconnect(self.client)
            self.socket.close(code, reason)

    def _act(self, request: protocol.Request, now: int) -> None:
        client, hub = cast("Client", self.client), self.desk.hub
        match request:
            case protocol.Subscribe():
                hub.subscribe(client, request, now)
            case protocol.Unsubscribe():
                hub.unsubscribe(client, request, now)
            case protocol.Configure():
                hub.configure(client, request, now)
            case protocol.Acknowledge():
                hub.acknowledge(client, request.n, now)
            case protocol.Ping():
                hub.control(client, protocol.heartbeat(now=now, q=hub.q, request=request.id), now)

    def _spend(self) -> None:
        """Take one message from the allowance (a token bucket); fatal when it is empty."""
        now = time.monotonic()
        refilled = self._allowance + (now - self._allowed_at) * protocol.MESSAGES_PER_S
        self._allowance, self._allowed_at = min(float(protocol.MESSAGE_BURST), refilled) - 1, now
        if self._allowance < 0:
            raise protocol.ProtocolError("rate", f"at most {protocol.MESSAGES_PER_S} messages a second", fatal=True)

    def _ready(self) -> None:
        if self.client is not None:
            self.desk.hub.ready(self.client, time.time_ns())

    def _expect_subscription(self) -> None:
        if self.client is not None and not self.client.groups and not self.client.is_closed:
            self.close(protocol.CLOSE_PROTOCOL, f"no subscription within {protocol.SUBSCRIBE_WITHIN_S} s")

    def _leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.client is not None:
            self.desk.hub.disconnect(self.client)
            self.desk.identities.pop(self, None)
            self.desk.per_user[self.user_id] -= 1
            if self.desk.per_user[self.user_id] <= 0:
                del self.desk.per_user[self.user_id]
