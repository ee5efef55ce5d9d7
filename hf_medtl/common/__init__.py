"""Paths, atomic files and text helpers that every layer needs."""
