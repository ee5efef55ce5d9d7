"""Paths, atomic files, run folders and text helpers that every layer needs."""

from hf_medtl.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "RunFolder": "hf_medtl.common.run_folder",
    },
)
