"""Metric modules for Hugging Face `evaluate`; each folder is also a metric Space."""

from pathlib import Path

from hf_medtl.errors import MedtlError

NAMES = ("clinical_metrics", "segmentation_metrics")


def path(name: str) -> str:
    """Return the folder of a module, from which `evaluate.load` loads it without network.

    Raises:
        MedtlError: An unknown module.
    """
    if name not in NAMES:
        raise MedtlError(f"Expected a module among {', '.join(NAMES)}, found {name!r}.")
    return str(Path(__file__).with_name(name))
