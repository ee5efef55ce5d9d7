"""Dataset specifications: `DATASETS` has one entry for each supported dataset, read by `loading.py`."""

from hf_medtl.common.text import nearest
from hf_medtl.data.catalog import brain, breast, chest, eye, general, skin
from hf_medtl.data.dataset_spec import DatasetSpec, split_labels
from hf_medtl.errors import MedtlError

__all__ = ["DATASETS", "DatasetSpec", "check_dataset_name", "split_labels"]

DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec for organ in (brain, breast, chest, eye, skin, general) for spec in organ.ROWS
}


def check_dataset_name(name: str) -> None:
    """Raise MedtlError unless a dataset has this name or it may be an id on the Hub, such as owner/name."""
    if name not in DATASETS and "/" not in name:
        hint = nearest(name.lower().replace("_", "-"), DATASETS)
        raise MedtlError(
            f"Unknown dataset {name!r}.{hint} Known datasets: {', '.join(DATASETS)}, and Hub ids such as owner/name."
        )
