"""Measurements, run by `make bench SUITE=…`; figures, no assertions."""
