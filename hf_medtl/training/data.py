"""The pictures of a recipe, split as it says."""

from hf_medtl.common.text import words
from hf_medtl.data.loading import Loaded, load
from hf_medtl.data.subset import subsample_training
from hf_medtl.training.recipe import Recipe


def read(recipe: Recipe) -> Loaded:
    """`load`, and `part_of_training`, with the arguments that a recipe has for them; errors as there."""
    loaded = load(
        recipe.dataset,
        recipe.data_dir,
        official_split=recipe.official_split,
        validation_fraction=recipe.validation_fraction,
        test_fraction=recipe.test_fraction,
        seed=int(recipe.split_seed or 0),
        folds=recipe.folds,
        fold=recipe.fold or 0,
        splits=recipe.splits,
        positive=recipe.positive_label,
        task=recipe.task,
        sources=words(recipe.sources),
    )
    if recipe.train_fraction == 1:
        return loaded
    return subsample_training(loaded, recipe.train_fraction, int(recipe.split_seed or 0))
