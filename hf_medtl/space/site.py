"""Compatibility: the app.py of Spaces written before this module became `serve` imports `main` from here."""

from hf_medtl.space.serve import main as main
