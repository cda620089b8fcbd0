"""Celery's tasks: each wakes one function; the work itself is in rows of PostgreSQL, so that a lost message loses nothing."""

import time

from celery import shared_task

from integration import jobs, services


@shared_task(name="integration.run_jobs")
def run_jobs() -> int:
    """Run the jobs that are due."""
    return jobs.run_due_jobs()


@shared_task(name="integration.plan_jobs")
def plan_jobs() -> None:
    """Write the job rows that only time makes necessary."""
    jobs.plan_jobs()


@shared_task(name="integration.watch_alerts")
def watch_alerts() -> tuple[int, int]:
    """Open and close alerts by the facts of now."""
    return services.watch_alerts(now_ns=time.time_ns())
