"""Heatmaps of model predictions, and tests of whether the heatmaps can be trusted."""
