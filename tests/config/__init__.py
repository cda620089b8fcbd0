"""Tests of the roof: settings, embedded servers, supervisor."""
