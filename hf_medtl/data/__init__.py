"""Datasets: loading, splitting, auditing and caching images and labels."""

from hf_medtl.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "DATASETS": "hf_medtl.data.specs",
        "DatasetSpec": "hf_medtl.data.specs",
        "LoadedDataset": "hf_medtl.data.dataset",
        "Survey": "hf_medtl.data.dataset",
        "get_augmentation": "hf_medtl.data.augmentation",
        "load": "hf_medtl.data.loading",
        "load_external": "hf_medtl.data.leakage",
        "read_image": "hf_medtl.data.images",
        "read_mask": "hf_medtl.data.images",
        "subsample_training": "hf_medtl.data.subset",
        "survey": "hf_medtl.data.loading",
        "write_audit": "hf_medtl.data.audit_page",
        "write_phantoms": "hf_medtl.data.phantoms",
    },
)
