"""How dates are written on every page: ISO 8601 order with the zone named, instead of a locale's habit."""
