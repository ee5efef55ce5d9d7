"""The whole run, readable from top to bottom."""

import gc
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from transformers import PreTrainedModel, set_seed

from hf_medtl.common.system import cores
from hf_medtl.common.text import words
from hf_medtl.data.augmentation import augmentation
from hf_medtl.data.cache import Pictures, prepare
from hf_medtl.data.leakage import external
from hf_medtl.data.loading import Loaded
from hf_medtl.data.splits import SPLITS
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.decisions import share
from hf_medtl.evaluation.ood import Outliers, outlier_threshold
from hf_medtl.models.preprocessing import preprocessing_key, to_uint8
from hf_medtl.publish.check import check_licence, check_prose, holds_token
from hf_medtl.publish.checkpoints import Checkpoints
from hf_medtl.publish.hub import push, reserve
from hf_medtl.runs.artifacts import report, written
from hf_medtl.runs.console import show_plan, show_results
from hf_medtl.runs.cross_validation import cross_validate
from hf_medtl.runs.folder import (
    begin,
    check_disk,
    check_folder,
    check_shared,
    disk_needed,
    finish,
    is_disk_full,
)
from hf_medtl.runs.search import search
from hf_medtl.runs.search_space import check_search, show_space
from hf_medtl.tasks import check, task_of
from hf_medtl.training.checkpoints import find_checkpoint
from hf_medtl.training.data import read
from hf_medtl.training.recipe import Recipe
from hf_medtl.training.runtime import Meter, keep_freed_memory
from hf_medtl.training.tracking import close, hold_open, log_results
from hf_medtl.training.trainer import MedicalTrainer
from hf_medtl.version import __version__

logger = logging.getLogger("hf_medtl")


class Interrupted(Exception):
    """A signal during training: a checkpoint was written, and the process should end with exit code 128 + `signal`."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def main(defaults: dict[str, Any]) -> None:
    """A recipe's command line: run it, print errors that the user can mend without a traceback.

    Exit codes: 0 finished, 1 an error that the message explains, 130 interrupted with Ctrl-C, 143 by SIGTERM, as
    schedulers send it; after both --resume_from_checkpoint auto goes on. `accelerate launch` of several processes ends
    with 1 whatever theirs were.
    """
    is_main = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logger.setLevel(logging.INFO if is_main else logging.ERROR)
    if os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ and "RANK" not in os.environ:
        # accelerate 1.15 sets the address for several processes, then starts one.
        logger.warning(
            "accelerate launch --cpu started a single process although more were asked for. For several on a CPU:\n"
            "  accelerate launch --multi_gpu --num_machines 1 --num_processes N RECIPE --use_cpu true"
        )
    code: str | int | None = 1
    try:
        run(Recipe.from_cli(defaults))
        code = None
    except (Interrupted, KeyboardInterrupt) as stop:
        if is_main:
            print(f"\nInterrupted. {stop}", file=sys.stderr)
        code = 128 + (stop.signal if isinstance(stop, Interrupted) else signal.SIGINT)
    except Exception as error:
        get_error_handler().record_exception(error)  # for the launcher, which shows it with the process's number
        if not isinstance(error, MedtlError):
            raise
        many = int(os.environ.get("WORLD_SIZE", "1")) > 1
        code = f"Error{' in process ' + os.environ['RANK'] if many else ''}: {error}"
    group = torch.distributed.get_backend() if torch.distributed.is_initialized() else None
    if group and (code is None or (group == "gloo" and not isinstance(code, str))):
        # Gloo's threads, which may abort the process at the interpreter's end (pytorch#179291), end with the group's
        # last reference. The trainer has one, and is part of a cycle; an exception's traceback would have one, too.
        torch.distributed.destroy_process_group()
        gc.collect()
    # After an error the group is left alone. NCCL would wait for the others, and they would notice and fail before this
    # process has ended, whose error the launcher should name.
    if code is not None:
        sys.exit(code)


def run(recipe: Recipe) -> Path:
    """Load, split, fine-tune, calibrate, save, evaluate, draw and describe; return the run folder.

    With --folds and no --fold, do so for each fold, and then say what the folds say together.

    Raises:
        MedtlError: what the user can mend, before training wherever it can be known then.
        Interrupted: after Ctrl-C or SIGTERM, when the checkpoint is written.
    """
    check(recipe)
    _, prose = written(recipe)
    if holds_token((recipe.to_yaml() + prose).encode()):
        raise MedtlError("An option or --model_card holds an access token, which would be saved. Give it in HF_TOKEN.")
    if recipe.push_to_hub:
        check_prose(prose)
        check_licence(recipe.model_license)
    space = check_search(recipe) if recipe.search else {}
    if recipe.all_folds:
        return cross_validate(recipe, run)
    folder = Path(str(recipe.output_dir))
    if recipe.device.type == "cpu" and "ACCELERATE_MIXED_PRECISION" in os.environ and torch.get_num_threads() == 1:
        # accelerate launch gives each process a single thread, however many cores there are.
        torch.set_num_threads(max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    if recipe.device.type == "cpu":
        keep_freed_memory()
    check_folder(folder, resuming=bool(recipe.resume_from_checkpoint), searching=bool(space))
    with recipe.main_process_first(local=True):  # the other processes find its caches
        loaded = read(recipe)
        outside = None
        if recipe.external_dataset:
            outside = external(
                loaded,
                recipe.external_dataset,
                recipe.external_data_dir,
                labels=recipe.label_map,
                drop_overlap=recipe.drop_overlap,
                sources=words(recipe.external_sources),
            )
    task = task_of(loaded)
    labels = task.output_labels(recipe, loaded)
    checkpoint = find_checkpoint(recipe.resume_from_checkpoint, folder, labels)
    model, processor, loss = build(recipe, loaded)
    if outside and task.verify:
        task.verify(model.config, outside)
    copies = 1 + (recipe.strategy == "lora") + 2 * bool(recipe.ema_decay)
    needed = disk_needed(model.num_parameters(), recipe.save_total_limit, int(recipe.num_train_epochs), copies)
    check_disk(folder, needed)
    if recipe.should_save:
        show_plan(recipe, loaded, outside, model, task.start(recipe, model), processor, needed, checkpoint)
        show_space(space)
    if recipe.dry_run:
        logger.info("Dry run: data, model, disk and flags are fine. Nothing was written.")
        return folder

    trainer: MedicalTrainer | None = None
    try:
        with recipe.main_process_first(local=False):
            if recipe.should_save:
                if recipe.push_to_hub:  # whoever may not write there learns so before training
                    name = recipe.hub_model_id or folder.resolve().name
                    recipe.hub_model_id = reserve(name, recipe.hub_private_repo)
                begin(folder, recipe.to_yaml(), loaded.table, loaded.excluded)
            else:
                check_shared(folder)
        if space:
            return search(recipe, space, loaded, lambda a, kind: trainer_of(a, loaded, *build(a, loaded), kind))
        trainer = trainer_of(recipe, loaded, model, processor, loss)
        if recipe.push_to_hub and recipe.hub_strategy != "end":
            trainer.add_callback(Checkpoints(str(recipe.hub_model_id), recipe.model_license))
        hold_open(trainer)
        with Meter(recipe, resumed=bool(checkpoint)) as meter:
            trainer.train(resume_from_checkpoint=checkpoint)
        if trainer.progress.interrupted:
            raise Interrupted(
                f"A checkpoint is in {folder}. Go on: the same command, --resume_from_checkpoint auto",
                trainer.progress.interrupted,
            )

        save(recipe, folder, model, processor)
        if task.calibrate:
            answers = task.answer(folder, loaded, "validation")
            if recipe.should_save:
                rules = recipe.threshold, recipe.conformal_alpha
                model.config.update(task.calibrate(model, loaded, answers, *rules))
        unlike = {}
        if task.kinds:
            others = {"external": pictures(recipe, outside, processor, splits=["test"])["test"]} if outside else {}
            splits = pictures(recipe, loaded, processor, splits=SPLITS) | others
            unlike = find_outliers(recipe, folder, trainer, task.kinds(loaded, "train"), splits)
        if task.calibrate or task.kinds:
            save(recipe, folder, model, processor)

        tested = [(data, task.answer(folder, data, "test")) for data in (loaded, outside) if data]
        if recipe.should_save:
            result = report(recipe, task, folder, tested, processor, trainer, unlike, meter.kwh)
            log_results(trainer, result)
            finish(folder)
            show_results(folder, result)
            if recipe.push_to_hub:
                logger.info(
                    "Pushed to %s", push(folder, str(recipe.hub_model_id), private=bool(recipe.hub_private_repo))
                )
        trainer.accelerator.wait_for_everyone()
    except Exception as error:
        if is_disk_full(error, folder):
            raise MedtlError(
                f"The disk of {folder} is full. The whole checkpoints are kept: make room, then give the same command "
                "with --resume_from_checkpoint auto."
            ) from error
        raise
    finally:
        if trainer:
            close(trainer)
    return folder


def build(recipe: Recipe, loaded: Loaded) -> tuple[PreTrainedModel, Any, Any]:
    """Model, image processor and loss of a recipe.

    Raises:
        MedtlError: what can't be trained so.
    """
    task = task_of(loaded)
    labels = task.output_labels(recipe, loaded)
    set_seed(recipe.seed)  # a new head, and all weights when from scratch, are drawn from it
    model, processor = task.build(recipe, labels)
    model.config.name_or_path = recipe.base_model  # trackers get the configuration, and no folder's place with it
    model.config.augmentation = recipe.augmentation  # Predictor shows no mirrored copies where training did not
    model.config.hf_medtl_version = __version__  # beside transformers_version
    recipe.plan.check(model)
    return model, processor, task.loss(recipe, labels, task.targets(loaded, "train"))


def trainer_of(
    recipe: Recipe,
    loaded: Loaded,
    model: PreTrainedModel,
    processor: Any,
    loss: Any,
    kind: type[MedicalTrainer] = MedicalTrainer,
) -> MedicalTrainer:
    """The trainer of a recipe, with what `build` gave."""
    task = task_of(loaded)
    return kind(
        recipe,
        model,
        processor,
        **pictures(recipe, loaded, processor, task.masks(model.config, loaded.every())),
        loss=loss,
        metrics=task.validation_metrics,
        reduce=task.reduce,
    )


def pictures(
    recipe: Recipe,
    loaded: Loaded,
    processor: Any,
    masks: dict[str, Any] | None = None,
    splits: Sequence[str] = ("train", "validation"),
) -> dict[str, Pictures]:
    """Prepared pictures by split, those of the training split augmented.

    Args:
        masks: arguments of `prepare` that concern masks, if any are learnt.
    """
    every = loaded.every().table  # so that runs with more or fewer training pictures share what is prepared
    place = pd.Series(range(len(every)), index=every["image_id"])[loaded.table["image_id"]].to_numpy()
    with recipe.main_process_first(local=True):
        prepared = prepare(
            [loaded.root / path for path in every["path"]],
            every["sha256"].tolist(),
            lambda images: to_uint8(processor, images),
            key=preprocessing_key(processor),
            **(masks or {}),
        )
    looked_at = getattr(processor, "counts", {}).get("pictures")  # none if the pictures were prepared before
    if looked_at:
        logger.info("Crop: nothing found in %d of %d pictures; those stay whole.", processor.counts["nothing"],
                    looked_at)  # fmt: skip
    return {
        split: Pictures(
            prepared,
            place[loaded.table["split"] == split].tolist(),
            task_of(loaded).targets(loaded, split),
            augmentation(recipe.augmentation) if split == "train" else None,
            recipe.seed,
        )
        for split in splits
    }


def find_outliers(
    recipe: Recipe, folder: Path, trainer: MedicalTrainer, kinds: NDArray[np.int64], splits: dict[str, Pictures]
) -> dict[str, Any]:
    """Fit what tells pictures unlike those of training; its threshold, from validation, goes to the configuration.

    Args:
        kinds: (n,) of the training pictures, see `Task`.
        splits: train, validation, test, and perhaps external.

    Returns:
        test, and perhaps external -> share of pictures called outliers, with limits; nothing if pictures are too few.
    """
    features = {name: trainer.head_inputs(its).numpy() for name, its in splits.items()}
    try:
        found = Outliers.fit(features.pop("train"), kinds)
    except MedtlError as error:
        logger.warning("Outliers will not be told: %s", error)
        return {}
    scores = {name: found.score(its) for name, its in features.items()}
    threshold = outlier_threshold(scores.pop("validation"))
    trainer.model.config.update({"outliers": {"threshold": threshold}})
    if recipe.should_save:
        found.save(folder)
    return {name: share(its > threshold) for name, its in scores.items()}


def save(recipe: Recipe, folder: Path, model: Any, processor: Any) -> None:
    """Weights, configuration and preprocessing, by the main process; the others wait."""
    if recipe.should_save:
        # By timm's own names, so that timm loads its models, too: transformers drops the prefix only where it added it.
        weights = {key.removeprefix("timm_model."): tensor for key, tensor in model.state_dict().items()}
        model.save_pretrained(folder, state_dict=weights)
        if not hasattr(processor, "data_config"):  # a timm model keeps its preprocessing in config.json
            processor.save_pretrained(folder)
    if recipe.world_size > 1:
        torch.distributed.barrier()
