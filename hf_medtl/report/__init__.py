"""Reports of runs: one HTML page, slides or a PDF."""

from hf_medtl.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "build_report": "hf_medtl.report.build",
        "write_report": "hf_medtl.report.build",
    },
)
