"""Tests; the folders mirror the apps. `tests.stack` holds real servers for the session."""
