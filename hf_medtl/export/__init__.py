"""ONNX and OpenVINO exports, verified against the original model."""

from hf_medtl.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "export_run": "hf_medtl.export.export",
    },
)
