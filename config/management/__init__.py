"""Commands of the whole: the supervisor."""
