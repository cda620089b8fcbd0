"""The nouns of the trade: numbers, times, identities, events, sessions. No Django, no clock, no I/O."""
