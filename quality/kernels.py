"""Compiled passes over the columns of a batch. Imported late: numba takes a second, and readers of rules do not need it."""

from integration.bar_kernel import compiled, frozen
from integration.market.ticks import Column, Mask


def mark_late(rows: Column, instrument_id: Column, ts_event: Column, newest: Column, late: Mask) -> None:
    """Mark the rows (positions, in order) whose time is below the newest before them of their instrument; raises `newest`."""
    _mark_late(rows, frozen(instrument_id), frozen(ts_event), newest, late)


@compiled
def _mark_late(rows: Column, instrument_id: Column, ts_event: Column, newest: Column, late: Mask) -> None:
    for row in rows:
        instrument = instrument_id[row]
        if ts_event[row] < newest[instrument]:
            late[row] = True
        else:
            newest[instrument] = ts_event[row]
