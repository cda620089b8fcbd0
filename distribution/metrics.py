"""The app's Prometheus objects; counted per flush or per message, never per row. docs/websocket.md has a line for each name."""

from typing import Final

from prometheus_client import Counter, Gauge

CLIENTS: Final = Gauge("mdi_websocket_clients", "Websocket connections that are open.", multiprocess_mode="livesum")
FRAMES: Final = Counter(
    "mdi_websocket_frames", "Distinct data frames encoded; clients with the same subscription share one."
)
FEED_TICKS: Final = Counter("mdi_live_feed_ticks", "Ticks of integrated/ticks folded into the live desk.")
FEED_HOLES: Final = Counter(
    "mdi_live_feed_missing_ticks", "Numbers of integrated/ticks that the live desk never received."
)
FEED_RELOADS: Final = Counter("mdi_live_feed_reloads", "Times the live desk took its state from PostgreSQL again.")
SLOW_CLIENTS: Final = Counter(
    "mdi_websocket_slow_clients_closed", "Connections cut because they took nothing any more."
)
