"""hf_medtl: transfer learning on medical images, the Hugging Face way.

For research and education. Not a medical device.
"""

import importlib
from typing import TYPE_CHECKING, Any

import wrapt

from hf_medtl.version import __version__ as __version__

# `import hf_medtl` stays light: each name is imported from its module when it is first used.
_NAMES = {
    "DATASETS": "hf_medtl.data.specs",
    "DatasetSpec": "hf_medtl.data.specs",
    "MedtlError": "hf_medtl.errors",
    "Predictor": "hf_medtl.predict",
    "Recipe": "hf_medtl.training.recipe",
    "audit": "hf_medtl.data.audit",
    "load": "hf_medtl.data.loading",
    "main": "hf_medtl.runs.train",
    "read_image": "hf_medtl.data.images",
    "run": "hf_medtl.runs.train",
    "survey": "hf_medtl.data.loading",
}

__all__ = [
    "DATASETS",
    "DatasetSpec",
    "MedtlError",
    "Predictor",
    "Recipe",
    "audit",
    "load",
    "main",
    "read_image",
    "run",
    "survey",
]

if TYPE_CHECKING:
    from hf_medtl.data.audit import audit
    from hf_medtl.data.images import read_image
    from hf_medtl.data.loading import load, survey
    from hf_medtl.data.specs import DATASETS, DatasetSpec
    from hf_medtl.errors import MedtlError
    from hf_medtl.predict import Predictor
    from hf_medtl.runs.train import main, run
    from hf_medtl.training.recipe import Recipe


# Our classes become known to the Auto classes as soon as transformers is imported; now would be early, and not light.
# Later, with one of its modules, would be in the middle of an import that our classes need finished.
wrapt.register_post_import_hook(lambda _: importlib.import_module("hf_medtl.models"), "transformers")


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
