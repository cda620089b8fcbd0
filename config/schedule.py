"""When Celery beat wakes which task. A message expires before the next one is sent, so that a worker that was away finds no pile."""

from typing import Any, Final

BEAT_SCHEDULE: Final[dict[str, dict[str, Any]]] = {
    "run due jobs": {"task": "integration.run_jobs", "schedule": 2.0, "options": {"expires": 10}},
    "plan jobs": {"task": "integration.plan_jobs", "schedule": 60.0, "options": {"expires": 60}},
    "watch alerts": {"task": "integration.watch_alerts", "schedule": 10.0, "options": {"expires": 10}},
}
