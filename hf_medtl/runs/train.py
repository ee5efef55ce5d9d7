"""A whole run, from top to bottom: plan, train, calibrate, test, write, publish."""

import contextlib
import logging
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from hf_medtl.common.files import adding_files
from hf_medtl.common.licences import card_metadata
from hf_medtl.common.messages import show_messages
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.common.system import cores, is_disk_full, threads_are_chosen
from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.splits import SPLITS
from hf_medtl.errors import Interrupted, MedtlError
from hf_medtl.evaluation.decisions import proportion
from hf_medtl.evaluation.matplotlib_backend import figure_formats
from hf_medtl.evaluation.ood import OutOfDistributionScorer, ood_threshold
from hf_medtl.models.heads import to_probabilities
from hf_medtl.publish.checkpoints import CheckpointUploader
from hf_medtl.publish.hub import create_repository, push, validate_card
from hf_medtl.publish.licences import list_sources
from hf_medtl.publish.neutral_files import write_identifiers
from hf_medtl.publish.private_names import check_planned_card
from hf_medtl.runs import preflight
from hf_medtl.runs.artifacts import write_artifacts
from hf_medtl.runs.console import show_plan, show_results
from hf_medtl.runs.cross_validation import cross_validate
from hf_medtl.runs.folder import check_output_dir, check_shared_folder, start_run
from hf_medtl.runs.lock import RUN_LOCK, TRAINS, lock_folder
from hf_medtl.runs.model_card import model_name, render_with_dummy_results
from hf_medtl.runs.preflight import Plan, build
from hf_medtl.runs.preprocessing import oversample, preprocess_splits
from hf_medtl.runs.resuming import last_change
from hf_medtl.runs.search import search
from hf_medtl.runs.search_space import show_space
from hf_medtl.tasks import task_for_dataset
from hf_medtl.training.nearest_neighbours import NearestNeighbours
from hf_medtl.training.recipe import Recipe
from hf_medtl.training.runtime import EnergyMeter, keep_freed_memory
from hf_medtl.training.tracking import close_trackers, keep_trackers_open, log_results
from hf_medtl.training.trainer import MedicalTrainer

logger = logging.getLogger("hf_medtl")


def run(recipe: Recipe) -> Path:
    """Make one run: load, split, fine-tune, calibrate, save, evaluate, draw and describe.

    With --folds and no --fold each fold is a run, and with --search each trial trains a model; their summary follows.

    Args:
        recipe: The options of the run.

    Returns:
        The run folder.

    Raises:
        MedtlError: What the user has to change, before training wherever it can be found then.
        Interrupted: After Ctrl-C or SIGTERM, when the checkpoint is written.
    """
    with figure_formats(recipe.figures):
        return _run(recipe)


def _run(recipe: Recipe) -> Path:
    show_messages()
    if recipe.all_folds:
        preflight.check_options(recipe)
        return cross_validate(recipe, run)
    _set_up_cpu(recipe)
    plan = preflight.check(recipe)
    folder = plan.folder
    if recipe.should_save:
        show_plan(recipe, plan)
        show_space(plan.space)
    if recipe.dry_run:
        logger.info("Dry run: data, model, disk and flags are fine. Nothing was written.")
        return folder

    # Of the main process alone, also for the others of its job.
    lock = lock_folder(folder, RUN_LOCK, TRAINS) if recipe.should_save else contextlib.nullcontext()
    with lock:  # before the Hub is asked, whose error would say nothing of the other process
        if recipe.push_to_hub and recipe.should_save:
            _make_repository(recipe, plan)
        return _train_and_write(recipe, plan)


def _train_and_write(recipe: Recipe, plan: Plan) -> Path:
    """Make everything of a run that writes to its folder."""
    folder, task, loaded, model, processor = plan.folder, plan.task, plan.loaded, plan.model, plan.processor
    trainer: MedicalTrainer | None = None
    try:
        _start(recipe, plan)
        if plan.space:
            return search(recipe, plan.space, lambda r, cls: make_trainer(r, loaded, *build(r, loaded), cls))

        trainer = make_trainer(recipe, loaded, model, processor, plan.loss)
        energy_kwh = _train(recipe, plan, trainer)
        if isinstance(trainer.fitted, NearestNeighbours):  # which no class of transformers can hold: there is no model
            ood_rates, tested = {}, _test_neighbours(recipe, plan, trainer, trainer.fitted)
        else:
            save(recipe, folder, model, processor)
            ood_rates = _calibrate(recipe, plan, trainer) if task.has_probabilities else {}
            tested = [(data, task.predict(folder, data, "test")) for data in (loaded, plan.external) if data]
        if recipe.should_save:
            result = write_artifacts(recipe, task, folder, tested, trainer, ood_rates, energy_kwh, plan.card)
            RunFolder(folder).mark_finished()
            log_results(trainer, result)
            show_results(folder, result)
            if recipe.push_to_hub:
                url = push(folder, str(recipe.hub_model_id), private=bool(recipe.hub_private_repo))
                logger.info("Pushed to %s", url)
        trainer.accelerator.wait_for_everyone()
    except Exception as error:
        if is_disk_full(error, folder):
            raise MedtlError(
                f"The disk of {folder} is full. Complete checkpoints are kept: make room, then give the same command "
                "with --resume_from_checkpoint auto."
            ) from error
        raise
    finally:
        if trainer:
            close_trackers(trainer)
    return folder


def _set_up_cpu(recipe: Recipe) -> None:
    if recipe.device.type != "cpu":
        return
    if "ACCELERATE_MIXED_PRECISION" in os.environ and torch.get_num_threads() == 1 and not threads_are_chosen():
        # accelerate launch gives each process a single thread, however many cores there are.
        torch.set_num_threads(max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    keep_freed_memory()


def _make_repository(recipe: Recipe, plan: Plan) -> None:
    """Make the repository of the run: what the Hub refuses shows before training."""
    if not recipe.publish_names:
        card = render_with_dummy_results(recipe, plan.task, plan.loaded, plan.external, plan.card)
        check_planned_card(card, (plan.loaded, plan.external))
    recipe.hub_model_id = create_repository(model_name(recipe), recipe.hub_private_repo)
    plan.card["name"] = recipe.hub_model_id
    card = render_with_dummy_results(recipe, plan.task, plan.loaded, plan.external, plan.card)
    validate_card(card, then="Nothing was trained.")


def _start(recipe: Recipe, plan: Plan) -> None:
    """Write the first files of the run."""
    with recipe.main_process_first(local=False):
        if not recipe.should_save:
            check_shared_folder(plan.folder)
            return
        # Again: another run may have begun or ended in the folder since the first check.
        check_output_dir(plan.folder, resuming=bool(recipe.resume_from_checkpoint), searching=bool(plan.space))
        recipe_yaml = "".join(f"{note}\n" for note in plan.notes) + recipe.to_yaml()
        start_run(plan.folder, recipe_yaml, plan.loaded.table, plan.loaded.excluded)
        write_identifiers(RunFolder(plan.folder), plan.loaded, plan.external)


def _train(recipe: Recipe, plan: Plan, trainer: MedicalTrainer) -> float | None:
    """Train; return the energy in kWh, if it was measured.

    Raises:
        Interrupted: By a signal, after a checkpoint was written.
    """
    if recipe.push_to_hub and recipe.hub_strategy != "end":
        licence = card_metadata(plan.card["license"], list_sources(plan.card))
        trainer.add_callback(CheckpointUploader(str(recipe.hub_model_id), licence))
    keep_trackers_open(trainer)
    trainer.changed_at = last_change(plan.notes)
    with EnergyMeter(recipe, resumed=bool(plan.checkpoint)) as meter:
        trainer.train(resume_from_checkpoint=plan.checkpoint)
    if trainer.progress.interrupted:
        raise Interrupted(
            f"A checkpoint is in {plan.folder}. Go on: the same command, --resume_from_checkpoint auto",
            trainer.progress.interrupted,
        )
    return meter.kwh


def make_trainer(
    recipe: Recipe,
    loaded: LoadedDataset,
    model: PreTrainedModel,
    processor: Any,
    loss: Any,
    trainer_class: type[MedicalTrainer] = MedicalTrainer,
) -> MedicalTrainer:
    """Return the trainer of a recipe.

    Args:
        recipe: The options of the run.
        loaded: The data set.
        model: Of `build`, as processor and loss.
        processor: The image processor.
        loss: The training loss.
        trainer_class: Class of the trainer.
    """
    task, shown = task_for_dataset(loaded), oversample(recipe, model.config, loaded)
    masks = task.mask_options(model.config, loaded.with_unused())
    if shown is not None and recipe.should_save:
        logger.info("Oversampling: an epoch shows %d training images %d times.", shown[-1] + 1, len(shown))
    return trainer_class(
        recipe,
        model,
        processor,
        **preprocess_splits(recipe, loaded, processor, masks, shown=shown),
        loss=loss,
        metrics=partial(task.validation_metrics, positive=loaded.positive_index),
        reduce=task.reduce_logits,
        groups=loaded.rows("train")["group"].tolist(),
    )


def _test_neighbours(
    recipe: Recipe, plan: Plan, trainer: MedicalTrainer, neighbours: NearestNeighbours
) -> list[tuple[LoadedDataset, Any]]:
    """Fit the decision rule on the validation split; return the data sets with probabilities of their test splits."""
    config = plan.model.config

    def probabilities(features: torch.Tensor, temperature: float = 1) -> NDArray[np.float64]:
        return to_probabilities(torch.from_numpy(neighbours.logits(features) / temperature), config).numpy()

    validation = probabilities(trainer.features["validation"])
    rule = plan.task.calibrate(None, plan.loaded, validation, recipe.threshold, recipe.conformal_alpha)
    config.update(rule.to_config())
    tested = []
    for data in (plan.loaded, plan.external):
        if data:
            images = preprocess_splits(recipe, data, plan.processor, splits=["test"])["test"]
            tested.append((data, probabilities(trainer.head_inputs(images), rule.temperature or 1)))
    return tested


def _calibrate(recipe: Recipe, plan: Plan, trainer: MedicalTrainer) -> dict[str, Any]:
    """Fit the decision rule on the validation split and save it with the model; return the rates of `_detect_ood`."""
    predictions = plan.task.predict(plan.folder, plan.loaded, "validation")
    ood_threshold, ood_rates = _detect_ood(recipe, plan, trainer)
    if recipe.should_save:
        rule = plan.task.calibrate(plan.model, plan.loaded, predictions, recipe.threshold, recipe.conformal_alpha)
        plan.model.config.update(replace(rule, ood_threshold=ood_threshold).to_config())
    save(recipe, plan.folder, plan.model, plan.processor)
    return ood_rates


def _detect_ood(recipe: Recipe, plan: Plan, trainer: MedicalTrainer) -> tuple[float | None, dict[str, Any]]:
    """Fit out-of-distribution detection on training features, and its threshold on those of the validation split.

    Returns:
        The threshold, and test, and external if there is one -> proportion of images that are out-of-distribution, with
        limits; None and empty if the training images are too few.
    """
    splits = preprocess_splits(recipe, plan.loaded, plan.processor, splits=SPLITS)
    if plan.external:
        splits["external"] = preprocess_splits(recipe, plan.external, plan.processor, splits=["test"])["test"]
    features: dict[str, NDArray[np.float32]] = {
        name: (trainer.features[name] if name in trainer.features else trainer.head_inputs(images)).numpy()
        for name, images in splits.items()
    }
    try:
        strata = plan.task.feature_strata(plan.loaded, "train")
        scorer = OutOfDistributionScorer.fit(features.pop("train"), strata)
    except MedtlError as error:
        logger.warning("Out-of-distribution images will not be detected: %s", error)
        return None, {}
    scores = {name: scorer.score(values) for name, values in features.items()}
    threshold = ood_threshold(scores.pop("validation"))
    if recipe.should_save:
        scorer.save(plan.folder)
    return threshold, {name: proportion(values > threshold) for name, values in scores.items()}


def save(recipe: Recipe, folder: Path, model: Any, processor: Any) -> None:
    """Save weights, configuration and preprocessing in the main process; the others wait.

    Args:
        recipe: The options of the run.
        folder: The run folder.
        model: The model.
        processor: Its image processor.
    """
    if recipe.should_save:
        # By timm's own names, so that timm loads its models, too: transformers drops the prefix only where it added it.
        weights = {key.removeprefix("timm_model."): tensor for key, tensor in model.state_dict().items()}
        with adding_files(folder) as staging:
            model.save_pretrained(staging, state_dict=weights)
            if not hasattr(processor, "data_config"):  # a timm model keeps its preprocessing in config.json
                processor.save_pretrained(staging)
    if recipe.world_size > 1:
        torch.distributed.barrier()
