"""Positive label of a run: kept from the run that it continues, or asked for on a terminal if the names do not tell."""

import logging
import sys
from dataclasses import replace
from pathlib import Path

from hf_medtl.common.run_folder import RunFolder
from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.errors import MedtlError
from hf_medtl.training.recipe import Recipe

logger = logging.getLogger("hf_medtl")


def settle_positive_label(recipe: Recipe, loaded: LoadedDataset, checkpoint: str | None) -> LoadedDataset:
    """Return the dataset with the run's positive label; an answer of the user becomes the recipe's --positive_label.

    Without --positive_label it is that of the checkpoint to resume from, or of the run whose --splits is repeated.

    Args:
        recipe: The options of the run.
        loaded: Its dataset.
        checkpoint: The checkpoint to resume from, or a fold's run, if any.

    Raises:
        MedtlError: The question has no answer, or --positive_label is another than that of the checkpoint.
    """
    if loaded.positive is None:
        return loaded
    earlier = checkpoint or (recipe.splits and Path(recipe.splits).parent)
    recorded = RunFolder(earlier).config.get("positive_label") if earlier else None
    if recipe.positive_label:
        if checkpoint and recorded in loaded.labels and recorded != recipe.positive_label and not recipe.allow_changes:
            raise MedtlError(
                f"--positive_label is {recipe.positive_label}, but {recorded} in {checkpoint}, where the best "
                "checkpoint was chosen with it. Give what it was, allow it (--allow_changes), or start another run in "
                "another --output_dir."
            )
        return loaded
    if recorded in loaded.labels:
        if recorded != loaded.positive or "positive_label" in RunFolder(str(earlier)).recipe:
            logger.info("The positive label is %s, as in the run of %s.", recorded, earlier)
            recipe.choose(positive_label=recorded)  # so that recipe.yaml alone gives it again
        return replace(loaded, spec=replace(loaded.spec, positive=recorded, positive_source="model"))
    if loaded.spec.positive_source == "order" and _can_ask(recipe):
        recipe.choose(positive_label=_ask(loaded.labels))
        return replace(loaded, spec=replace(loaded.spec, positive=recipe.positive_label, positive_source="option"))
    return loaded


def _can_ask(recipe: Recipe) -> bool:
    """True if somebody is at the terminal, and the answer holds for the whole run."""
    at_terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    return at_terminal and recipe.world_size == 1 and recipe.all_folds >= bool(recipe.folds) and not recipe.dry_run


def _ask(labels: tuple[str, ...]) -> str:
    question = f"Which label is the finding to detect? {', '.join(f'{i}: {name}' for i, name in enumerate(labels, 1))} "
    try:
        while (answer := input(question).strip()) not in labels:
            if answer in ("1", "2"):
                return labels[int(answer) - 1]
    except EOFError:
        raise MedtlError(f"Specify --positive_label {' or --positive_label '.join(labels)}.") from None
    return answer
