"""Metric module for segmentation masks."""
