"""hf_medtl: transfer learning on medical images, the Hugging Face way.

For research and education. Not a medical device.
"""

import importlib
from typing import TYPE_CHECKING

from hf_medtl.common.lazy import after_import, lazy_exports
from hf_medtl.version import __version__ as __version__

if TYPE_CHECKING:
    from hf_medtl.cli.train import main as main
    from hf_medtl.data.audit import audit as audit
    from hf_medtl.data.images import read_image as read_image
    from hf_medtl.data.loading import load as load
    from hf_medtl.data.loading import survey as survey
    from hf_medtl.data.specs import DATASETS as DATASETS
    from hf_medtl.data.specs import DatasetSpec as DatasetSpec
    from hf_medtl.errors import MedtlError as MedtlError
    from hf_medtl.predict import Predictor as Predictor
    from hf_medtl.runs.train import run as run
    from hf_medtl.training.recipe import Recipe as Recipe

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "DATASETS": "hf_medtl.data.specs",
        "DatasetSpec": "hf_medtl.data.specs",
        "MedtlError": "hf_medtl.errors",
        "Predictor": "hf_medtl.predict",
        "Recipe": "hf_medtl.training.recipe",
        "audit": "hf_medtl.data.audit",
        "load": "hf_medtl.data.loading",
        "main": "hf_medtl.cli.train",
        "read_image": "hf_medtl.data.images",
        "run": "hf_medtl.runs.train",
        "survey": "hf_medtl.data.loading",
    },
)

# Our classes become known to the Auto classes as soon as transformers is imported; now would be early, and not light.
# Later, with one of its modules, would be in the middle of an import that our classes need finished.
after_import("transformers", lambda: importlib.import_module("hf_medtl.models"))
