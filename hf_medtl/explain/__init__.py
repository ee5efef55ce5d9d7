"""Heatmaps of what a model relies on, and the checks that validate them."""

from hf_medtl.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Explanation": "hf_medtl.explain.maps",
        "energy_in_region": "hf_medtl.explain.localization",
        "explain": "hf_medtl.explain.maps",
        "heatmaps": "hf_medtl.explain.maps",
        "overlay": "hf_medtl.explain.gallery",
        "verdict": "hf_medtl.explain.sanity",
        "write_report": "hf_medtl.explain.report",
    },
)
