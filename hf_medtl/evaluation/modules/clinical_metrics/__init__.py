"""Metric module for classifiers."""
