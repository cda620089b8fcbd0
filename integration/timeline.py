"""Which history of PostgreSQL we are on: a failover that lost commits, and a restored backup, begin another one.

What a position or the sequencer wrote on another history may have been written, acknowledged or published more than once or lost
since: the consumer reads again from the stored position, and the sequencer begins a new epoch. Identity drops what was stored.
"""

from typing import Final

from django.db import connection

# By the WAL's own name and not by pg_control_checkpoint(), which tells the new timeline only after the next checkpoint.
_QUERY: Final = """
    SELECT (SELECT system_identifier FROM pg_control_system()) || '/' || left(pg_walfile_name(pg_current_wal_lsn()), 8)
"""


def current_timeline() -> str:
    """Name the history: the cluster's own number and its timeline. DatabaseError on a standby, which has none of its own."""
    with connection.cursor() as cursor:
        cursor.execute(_QUERY)
        return str(cursor.fetchone()[0])
