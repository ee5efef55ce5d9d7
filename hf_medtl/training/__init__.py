"""Training: recipes, the Trainer subclass and its callbacks."""

from hf_medtl.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "MedicalTrainer": "hf_medtl.training.trainer",
        "Recipe": "hf_medtl.training.recipe",
    },
)
