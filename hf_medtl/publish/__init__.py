"""Model cards, Hub uploads and publication checks."""
