"""Runs as a page, slides or a PDF: content (`blocks`) is gathered once and drawn three ways."""
