"""Model cards, Hub uploads and publication checks."""

from hf_medtl.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "plan_upload": "hf_medtl.publish.hub",
        "push": "hf_medtl.publish.hub",
        "render_card": "hf_medtl.publish.card",
    },
)
