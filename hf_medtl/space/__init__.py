"""The Gradio Space: a page to try models on images, and its API."""

from hf_medtl.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "create_app": "hf_medtl.space.serve",
        "push_space": "hf_medtl.space.publish",
        "write_space": "hf_medtl.space.publish",
    },
)
