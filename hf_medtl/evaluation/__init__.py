"""Metrics, confidence intervals, calibration, decisions and significance tests."""
