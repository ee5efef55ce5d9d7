"""Our metrics as modules of Hugging Face `evaluate`: a folder each, which is also a metric Space."""

from pathlib import Path

from hf_medtl.errors import MedtlError

NAMES = ("clinical_metrics", "segmentation_metrics")


def path(name: str) -> str:
    """Folder of a module, for `evaluate.load`, which then needs no network.

    Raises:
        MedtlError: there is no such module.
    """
    if name not in NAMES:
        raise MedtlError(f"Expected a module among {', '.join(NAMES)}, found {name!r}.")
    return str(Path(__file__).with_name(name))
