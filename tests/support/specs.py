"""Changed entries of DATASETS."""

from dataclasses import replace

from hf_medtl.data.columns import parse_columns


def with_columns(spec, columns="", **changes):
    """Return a dataset with the columns of `--columns` and other changed fields."""
    return replace(spec, columns=spec.columns | parse_columns(columns), **changes)
