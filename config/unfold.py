"""The look of the admin (django-unfold): title, colours, and the sidebar grouped as the work is."""

from typing import Any, Final

from django.templatetags.static import static
from django.urls import reverse_lazy


def _link(title: str, icon: str, model: str, **extra: str) -> dict[str, Any]:
    return {"title": title, "icon": icon, "link": reverse_lazy(f"admin:integration_{model}_changelist"), **extra}


UNFOLD: Final[dict[str, Any]] = {
    "SITE_TITLE": "Market data integration",
    "SITE_HEADER": "Market data",
    "SITE_SUBHEADER": "Data operations",
    "SITE_URL": "/",
    "SITE_SYMBOL": "candlestick_chart",
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": lambda _request: static("distribution/icon.svg")}
    ],
    "SHOW_HISTORY": True,
    "SHOW_VIEW_ON_SITE": False,
    "SHOW_BACK_BUTTON": True,
    "DASHBOARD_CALLBACK": "integration.workqueue.dashboard",
    "STYLES": [lambda _request: static("integration/admin.css")],
    "BORDER_RADIUS": "4px",
    "COLORS": {
        "primary": {
            "50": "oklch(97% .014 235)",
            "100": "oklch(94% .03 235)",
            "200": "oklch(89% .055 235)",
            "300": "oklch(82% .09 236)",
            "400": "oklch(74% .12 237)",
            "500": "oklch(64% .14 240)",
            "600": "oklch(53% .135 243)",
            "700": "oklch(46% .12 244)",
            "800": "oklch(40% .1 244)",
            "900": "oklch(35% .08 244)",
            "950": "oklch(26% .06 244)",
        }
    },
    "SIDEBAR": {
        "show_search": True,
        "show_all_applications": False,
        "navigation": [
            {
                "title": "",
                "items": [
                    {"title": "Work queue", "icon": "checklist", "link": reverse_lazy("admin:index")},
                    _link("Quarantine", "report", "quarantinedevent", badge="integration.workqueue.waiting_badge"),
                    _link("Gaps", "space_bar", "gap"),
                    _link("Alerts", "notifications", "alert"),
                    {"title": "Trace", "icon": "conversion_path", "link": reverse_lazy("trace_event")},
                ],
            },
            {
                "title": "Flow",
                "separator": True,
                "items": [
                    _link("Subscriptions", "input", "subscription"),
                    _link("Batches", "stacks", "batch"),
                    _link("Outgoing messages", "output", "outgoingmessage"),
                    _link("Jobs", "manufacturing", "job"),
                ],
            },
            {
                "title": "Reference",
                "separator": True,
                "items": [
                    _link("Instruments", "candlestick_chart", "instrument"),
                    _link("Aliases", "label", "instrumentalias"),
                    _link("Issuers", "domain", "issuer"),
                    _link("Venues", "account_balance", "venue"),
                    _link("Sources", "satellite_alt", "source"),
                ],
            },
            {
                "title": "Access",
                "separator": True,
                "collapsible": True,
                "items": [
                    {"title": "Users", "icon": "person", "link": reverse_lazy("admin:auth_user_changelist")},
                    {"title": "Groups", "icon": "group", "link": reverse_lazy("admin:auth_group_changelist")},
                ],
            },
        ],
    },
}
