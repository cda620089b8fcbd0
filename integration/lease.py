"""Who may write: leases by name, fenced by an epoch, with the old holder's database session ended at a takeover."""

from dataclasses import dataclass

from django.db import OperationalError, connection, transaction

from integration.market.errors import FencedError, RetriableError

_LOCK_TIMEOUT_MS = 500


@dataclass(frozen=True, slots=True)
class HeldLease:
    """A lease as we took it; good as long as the row still shows this epoch."""

    name: str
    epoch: int


def acquire(name: str, holder: str) -> HeldLease:
    """Take the lease, whoever holds it: end the old holder's database session, then raise the epoch.

    A holder that was frozen in the middle of a transaction keeps its row locks through every timeout, so its backend is
    terminated first. RetriableError when the row stays locked even so.
    """
    _terminate_holder(name)
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}")
            cursor.execute(
                """
                INSERT INTO integration_lease (name, epoch, holder, backend_pid, backend_start, acquired_at, renewed_at)
                SELECT %s, 1, %s, pid, backend_start, clock_timestamp(), clock_timestamp()
                  FROM pg_stat_activity WHERE pid = pg_backend_pid()
                ON CONFLICT (name) DO UPDATE SET epoch = integration_lease.epoch + 1, holder = excluded.holder,
                  backend_pid = excluded.backend_pid, backend_start = excluded.backend_start,
                  acquired_at = excluded.acquired_at, renewed_at = excluded.renewed_at
                RETURNING epoch
                """,
                [name, holder],
            )
            (epoch,) = cursor.fetchone()
    except OperationalError as problem:
        raise RetriableError(f"lease {name} is locked", code="lease_locked") from problem
    return HeldLease(name, epoch)


def acquire_if_stale(name: str, holder: str, *, stale_after_s: float) -> HeldLease | None:
    """Take the lease only when its holder has not renewed it for `stale_after_s` seconds; None while it is alive."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT clock_timestamp() - renewed_at < make_interval(secs => %s) FROM integration_lease WHERE name = %s AND holder <> ''",
            [stale_after_s, name],
        )
        row = cursor.fetchone()
    return None if row is not None and row[0] else acquire(name, holder)


def confirm(lease: HeldLease) -> None:
    """Lock the lease row until the end of this transaction; FencedError when another process has taken it.

    Called last before COMMIT, so that the row is locked for as short as can be.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT epoch FROM integration_lease WHERE name = %s FOR UPDATE", [lease.name])
        row = cursor.fetchone()
    if row is None or row[0] != lease.epoch:
        raise FencedError(f"lease {lease.name} has moved on, was epoch {lease.epoch}, is {row[0] if row else 'gone'}")


def renew(lease: HeldLease) -> None:
    """Say that the holder is alive; FencedError when it no longer holds the lease."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE integration_lease SET renewed_at = clock_timestamp() WHERE name = %s AND epoch = %s",
            [lease.name, lease.epoch],
        )
        if cursor.rowcount != 1:
            raise FencedError(f"lease {lease.name} has moved on, was epoch {lease.epoch}")


def release(lease: HeldLease) -> None:
    """Give the lease up at a clean stop, so that a standby need not wait."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE integration_lease SET holder = '', backend_pid = NULL, backend_start = NULL WHERE name = %s AND epoch = %s",
            [lease.name, lease.epoch],
        )


def _terminate_holder(name: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT pg_terminate_backend(activity.pid, 2000)
              FROM integration_lease AS lease
              JOIN pg_stat_activity AS activity ON activity.pid = lease.backend_pid AND activity.backend_start = lease.backend_start
             WHERE lease.name = %s AND activity.pid <> pg_backend_pid()
            """,
            [name],
        )
