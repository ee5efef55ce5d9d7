"""Names of splits in folders and tables."""

SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
               "validation": "validation", "dev": "validation", "test": "test", "testing": "test"}  # fmt: skip


def parse_split(name: str) -> str | None:
    """Return the split that a folder or a cell of a table names: train, validation, test; None if unknown."""
    return SPLIT_NAMES.get(name.strip().lower())
