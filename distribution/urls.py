"""Addresses of the desk, and of the websocket."""

from typing import Any

from django.contrib.auth.views import LoginView, LogoutView
from django.urls import path

from distribution import views
from distribution.consumers import MarketDataConsumer

urlpatterns = [
    path("", views.desk, name="desk"),
    path(
        "login/",
        LoginView.as_view(template_name="distribution/login.html", redirect_authenticated_user=True),
        name="login",
    ),
    path("logout/", LogoutView.as_view(next_page="login"), name="logout"),
    path("api/desk/bars", views.desk_bars, name="desk-bars"),
]

websocket_urlpatterns: list[Any] = [path("ws/v1/market-data", MarketDataConsumer.as_asgi())]
