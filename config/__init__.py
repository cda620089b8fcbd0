"""The roof: settings, wiring and the commands that run the whole. Nothing imports it; Django reaches it by dotted path."""
