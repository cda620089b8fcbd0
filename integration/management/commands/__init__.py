"""Management commands of the way in."""
