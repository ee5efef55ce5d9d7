"""Module of `evaluate` for classifiers."""
