"""Module of `evaluate` for masks."""
