"""The ASGI application: HTTP by Django, websockets by Channels, and the live desk's life with the server's."""

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
http = get_asgi_application()

from channels.auth import AuthMiddlewareStack  # noqa: E402 - needs Django's apps
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402

from distribution.consumers import SERVER_SEND  # noqa: E402
from distribution.feeds import Desk  # noqa: E402
from distribution.urls import websocket_urlpatterns  # noqa: E402

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class KeepServerSend:
    """Put the server's own `send` into a websocket's scope, so that frames need not pass the session middleware."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        await self.inner({**scope, SERVER_SEND: send}, receive, send)


async def lifespan(_scope: Scope, receive: Receive, send: Send) -> None:
    """Start the desk with the server, so that the first visitor finds it warm, and stop its readers with the server."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            Desk.current()
            await send({"type": "lifespan.startup.complete"})
        else:
            await Desk.current().stop()
            await send({"type": "lifespan.shutdown.complete"})
            return


application = ProtocolTypeRouter(
    {
        "http": http,
        "websocket": KeepServerSend(AuthMiddlewareStack(URLRouter(websocket_urlpatterns))),
        "lifespan": lifespan,
    }
)
