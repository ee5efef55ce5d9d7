"""Dataset specifications: `DATASETS` has one entry for each supported dataset, read by `loading.py`."""

from hf_medtl.data.catalog import brain, chest, general
from hf_medtl.data.dataset_spec import DatasetSpec, split_labels

__all__ = ["DATASETS", "DatasetSpec", "split_labels"]

DATASETS: dict[str, DatasetSpec] = {spec.name: spec for spec in (*brain.ROWS, *chest.ROWS, *general.ROWS)}
