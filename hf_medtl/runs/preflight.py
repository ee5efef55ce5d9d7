"""Checks before training: options, tokens, card, output folder, data, labels, checkpoint, model, loss and disk."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, set_seed

from hf_medtl.common.model_place import check_place
from hf_medtl.common.text import nearest, split_commas
from hf_medtl.data.columns import parse_columns
from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.leakage import load_external
from hf_medtl.data.positive_label import check_positive
from hf_medtl.data.specs import DATASETS
from hf_medtl.errors import MedtlError
from hf_medtl.models.backbones import timm_tags
from hf_medtl.publish.card_fields import check_prose
from hf_medtl.publish.check import contains_token
from hf_medtl.publish.hub import check_hub_access
from hf_medtl.publish.licences import asked_licence, check_licence, check_waiver, find_problem, list_sources
from hf_medtl.publish.prose import read_prose
from hf_medtl.runs.folder import check_disk, check_output_dir, disk_needed
from hf_medtl.runs.lock import check_unlocked
from hf_medtl.runs.model_card import collect_facts, model_name, render_with_dummy_results
from hf_medtl.runs.positive_label import settle_positive_label
from hf_medtl.runs.resuming import check_changes
from hf_medtl.runs.search_space import Space, check_search
from hf_medtl.runs.training_checks import check_training
from hf_medtl.tasks import Task, get_task, task_for_dataset
from hf_medtl.training.checkpoints import find_checkpoint
from hf_medtl.training.options import OWN_NETWORKS
from hf_medtl.training.recipe import Recipe
from hf_medtl.version import __version__

logger = logging.getLogger("hf_medtl")


@dataclass(frozen=True, eq=False)
class Plan:
    """A run that has passed all checks.

    Attributes:
        folder: The output folder.
        task: The learning task.
        loaded: The data set, split.
        external: The external test set, or None.
        space: What a hyperparameter search tries; empty for a single run.
        checkpoint: The checkpoint to resume from, or None.
        model: The model to train.
        processor: Its image processor.
        loss: The training loss.
        disk_bytes: Disk space that the run needs at most.
        card: Facts of the model card that are known before training.
        notes: Comments for recipe.yaml: what was changed when the run was resumed.
    """

    folder: Path
    task: Task
    loaded: LoadedDataset
    external: LoadedDataset | None
    space: Space
    checkpoint: str | None
    model: PreTrainedModel
    processor: Any
    loss: Any
    disk_bytes: float
    card: dict[str, Any]
    notes: list[str]


def check_options(recipe: Recipe) -> Space:
    """Check what can be checked without data; return what a hyperparameter search tries, if one is asked for.

    Raises:
        MedtlError: Options that do not go together, an access token in what would be saved, or a model card or licence
            that can't be published.
    """
    get_task(recipe.task).check_recipe(recipe)
    if recipe.positive_label is not None:
        check_positive(DATASETS.get(recipe.dataset, DATASETS["imagefolder"]), recipe.positive_label)
    _, prose = read_prose(recipe.model_card)
    if contains_token((recipe.to_yaml() + prose).encode()):
        raise MedtlError("An option or --model_card holds an access token, which would be saved. Give it in HF_TOKEN.")
    if recipe.model_license is not None:
        check_licence(recipe.model_license)
    check_waiver(recipe.license_waiver)
    if recipe.push_to_hub:
        check_hub_access(model_name(recipe))
        check_prose(prose)
    space = check_search(recipe) if recipe.search else {}
    _check_models(recipe)  # last, because the Hub may be asked
    return space


def check(recipe: Recipe) -> Plan:
    """Make every check of a run that is possible before training. Nothing is written.

    Args:
        recipe: Of a single run or of a search, not of all folds.

    Raises:
        MedtlError: What the user has to change.
    """
    space = check_options(recipe)
    folder = Path(str(recipe.output_dir))
    if recipe.should_save:
        check_unlocked(folder)
    check_output_dir(folder, resuming=bool(recipe.resume_from_checkpoint), searching=bool(space))
    with recipe.main_process_first(local=True):  # the other processes find its caches
        loaded = recipe.load_data()
    task = task_for_dataset(loaded)
    checkpoint = find_checkpoint(recipe.resume_from_checkpoint, folder, task.output_labels(recipe, loaded))
    notes = check_changes(recipe, checkpoint) if checkpoint else []
    loaded = settle_positive_label(recipe, loaded, checkpoint)
    with recipe.main_process_first(local=True):
        external = _load_external(recipe, loaded) if recipe.external_dataset else None
    model, processor, loss = build(recipe, loaded)
    task.check_data(model.config, loaded)
    if external:
        task.check_external(model.config, external)
    check_training(recipe, task, loaded, model, processor)
    copies = 1 + (recipe.strategy == "lora") + 2 * bool(recipe.ema_decay)
    epochs = 0 if recipe.plan.is_fitted else int(recipe.num_train_epochs)  # each may have a checkpoint
    needed = disk_needed(model.num_parameters(), recipe.save_total_limit, epochs, copies)
    check_disk(folder, needed)
    card = collect_facts(recipe, task, loaded, external, model, processor)
    _check_licences(recipe, card)
    render_with_dummy_results(recipe, task, loaded, external, card)
    return Plan(folder, task, loaded, external, space, checkpoint, model, processor, loss, needed, card, notes)


def build(recipe: Recipe, loaded: LoadedDataset) -> tuple[PreTrainedModel, Any, Any]:
    """Return model, image processor and loss of a recipe.

    Raises:
        MedtlError: A model, strategy or loss that does not go with the data.
    """
    task = task_for_dataset(loaded)
    labels = task.output_labels(recipe, loaded)
    set_seed(recipe.seed)  # a new head, and all weights when from scratch, are drawn from it
    model, processor = task.build(recipe, labels)
    model.config.name_or_path = recipe.base_model  # trackers get the configuration, which must not name a local path
    model.config.augmentation = recipe.augmentation  # Predictor shows no mirrored copies where training did not
    model.config.synthetic_data = bool(loaded.spec.phantom)  # Predictor warns: a demo model knows nothing of patients
    model.config.hf_medtl_version = __version__  # beside transformers_version
    if loaded.positive is not None and task.has_probabilities:
        model.config.positive_label = loaded.positive  # a run that is resumed keeps it
    recipe.plan.check(model)
    return model, processor, task.loss(recipe, labels, task.loss_targets(recipe, model.config, loaded))


def _check_licences(recipe: Recipe, card: Mapping[str, Any]) -> None:
    """Refuse to train for the Hub, or else warn, if the model could not be published under its licence."""
    sources = list_sources(card)
    problem = find_problem(sources, asked_licence(sources, recipe.model_license), recipe.license_waiver)
    if problem and recipe.push_to_hub:
        raise MedtlError(f"{problem} Nothing was trained.")
    if problem:
        logger.warning("%s As it is, the card says %s, and push refuses the model.", problem, card["license"])


def _check_models(recipe: Recipe) -> None:
    """Check that the models which will be loaded are where their names say; images are read first, for minutes."""
    name = recipe.model_name_or_path
    only_code = name in OWN_NETWORKS or (recipe.from_scratch and name.startswith("timm/"))  # without any file
    for option, model, revision in (
        ("model_name_or_path", None if only_code else name, recipe.model_revision),
        ("lung_model", recipe.lung_model, None),
    ):
        try:
            if model:
                check_place(model, revision)
        except MedtlError as error:
            hint = (
                (nearest(str(model), OWN_NETWORKS) or timm_tags(str(model))) if option == "model_name_or_path" else ""
            )
            raise MedtlError(f"--{option}: {error}{hint}") from error


def _load_external(recipe: Recipe, loaded: LoadedDataset) -> LoadedDataset:
    return load_external(
        loaded,
        str(recipe.external_dataset),
        recipe.external_data_dir,
        labels=recipe.label_map,
        drop_overlap=recipe.drop_overlap,
        sources=split_commas(recipe.external_sources),
        columns=parse_columns(recipe.external_columns),
    )
