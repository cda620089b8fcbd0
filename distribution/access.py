"""Who may see the desk: the link's token, the origin of a websocket, and the content security policy of every page."""

from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth import get_user_model, login
from django.http import HttpRequest, HttpResponse
from django.http.request import split_domain_port, validate_host
from django.utils.crypto import constant_time_compare

DESK_USER: Final = "desk"

_STRICT: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
# Unfold ships Alpine's evaluating build and sets styles from scripts; nothing foreign is allowed there either.
_ADMIN: Final = (
    "default-src 'none'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


class ContentSecurityPolicy:
    """Middleware: the strict policy on every answer, the admin's on `/admin/`; a view that set its own keeps it."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Add the header."""
        response = self.get_response(request)
        response.headers.setdefault(
            "Content-Security-Policy", _ADMIN if request.path.startswith("/admin/") else _STRICT
        )
        return response


def is_token(text: str) -> bool:
    """Compare with this run's token in constant time; no token set means that no link works."""
    return bool(settings.ACCESS_TOKEN) and constant_time_compare(text.encode(), settings.ACCESS_TOKEN.encode())


def sign_in_desk(request: HttpRequest) -> None:
    """Sign the bearer of the link in as the user `desk`, who may look and change nothing."""
    user, _ = get_user_model().objects.get_or_create(
        username=DESK_USER, defaults={"is_active": True, "is_staff": False}
    )
    login(request, user, backend="django.contrib.auth.backends.ModelBackend")


def is_same_origin(scope: Mapping[str, Any]) -> bool:
    """Tell whether a websocket comes from a page of this very host and port, or from a program, which sends no origin.

    Cookies know no ports: without this, any page of another local server could read the desk with the visitor's cookie.
    """
    headers = {name.lower(): value.decode("latin-1").lower() for name, value in scope.get("headers", ())}
    origin, host = headers.get(b"origin"), headers.get(b"host", "")
    name, _ = split_domain_port(host)
    if not name or not validate_host(name, settings.ALLOWED_HOSTS):
        return False
    return origin is None or urlsplit(origin).netloc == host
