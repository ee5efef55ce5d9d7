"""Checks of how training would go: metric of the best checkpoint, batches, optimizer and learning-rate schedule."""

import contextlib
import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel, get_scheduler

from hf_medtl.common.text import nearest
from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.errors import MedtlError
from hf_medtl.models.preprocessing import to_uint8
from hf_medtl.models.strategies import count_blocks, eval_frozen_modules, parameter_depths, set_trainable
from hf_medtl.runs.preprocessing import oversample
from hf_medtl.tasks import Task
from hf_medtl.training.arguments import option_name
from hf_medtl.training.distributed import smallest_batch
from hf_medtl.training.features import check_pooled
from hf_medtl.training.recipe import LOWER_IS_BETTER, Recipe
from hf_medtl.training.trainer import MedicalTrainer

logger = logging.getLogger("hf_medtl")


def check_training(recipe: Recipe, task: Task, loaded: LoadedDataset, model: PreTrainedModel, processor: Any) -> None:
    """Check what would otherwise end training after it has begun.

    Turns on --dataloader_drop_last, with a message, if the last batch of an epoch would be a single image that the
    model cannot be trained on.

    Args:
        recipe: options of the run.
        task: its task.
        loaded: data set.
        model: model to train; it is left as it is.
        processor: its image processor.

    Raises:
        MedtlError: an option that does not go with the others, the data or the model.
    """
    if not recipe.plan.is_fitted or recipe.search:
        check_metric(recipe, task, loaded)
    missing = [label for label, count in loaded.counts()["validation"].items() if not count]
    if task.has_probabilities and missing:
        logger.warning(
            "The validation split has no image of %s: temperature, threshold and conformal sets do not take it into "
            "account. A larger --validation_fraction, or another split, may have some.",
            ", ".join(missing),
        )
    if recipe.plan.is_fitted:
        height, width = _image_shape(processor)
        check_pooled(model, torch.zeros(1, 3, height, width))
        return
    if task.base_model(recipe) is None and 0 < recipe.learning_rate < 1e-4:
        logger.warning(
            "--learning_rate %g is for fine-tuning pretrained weights. Random weights, as here, learn little with it: "
            "5e-4 to 1e-3 is usual, with more epochs.",
            recipe.learning_rate,
        )
    shown = oversample(recipe, model.config, loaded)
    number = len(loaded.rows("train") if shown is None else shown)
    _check_batches(recipe, number, model, processor)
    steps = _count_steps(recipe, number)
    _check_optimizer(recipe, model, steps)
    by_steps = option_name(recipe.eval_strategy) == "steps"
    end = steps if by_steps else max(recipe.num_train_epochs, 1)
    if recipe.load_best_model_at_end and recipe.eval_delay > end:
        raise MedtlError(
            f"--eval_delay {recipe.eval_delay:g} is after the end of training, at {end:g} "
            f"{'steps' if by_steps else 'epochs'}: no checkpoint would be the best. Give a smaller one, or "
            "--load_best_model_at_end false --early_stopping_patience 0."
        )
    # Before transformers 5.23 there is only the older name.
    if getattr(recipe, "activation_checkpointing", recipe.gradient_checkpointing) and (
        not model.supports_gradient_checkpointing
    ):
        raise MedtlError(
            f"--gradient_checkpointing: {type(model).__name__} does not support it. Remove the option; a smaller "
            "--per_device_train_batch_size with --gradient_accumulation_steps saves memory, too."
        )
    if recipe.neftune_noise_alpha:
        try:
            model.get_input_embeddings()
        except (AttributeError, NotImplementedError) as error:
            raise MedtlError(
                f"--neftune_noise_alpha: {type(model).__name__} has no embeddings. Remove the option."
            ) from error


def check_metric(recipe: Recipe, task: Task, loaded: LoadedDataset) -> None:
    """Check that --metric_for_best_model is a metric of the task, defined on the validation split.

    Raises:
        MedtlError: another name, a metric that is undefined because a label is missing, or one that
            --greater_is_better turns upside down.
    """
    schedule = option_name(recipe.lr_scheduler_type)
    saving = option_name(recipe.save_strategy)
    if not (recipe.load_best_model_at_end or saving == "best" or schedule in ("reduce_lr_on_plateau", "greedy")):
        return
    metric = str(recipe.metric_for_best_model).removeprefix("eval_")
    values = {"loss": 0.0} | task.validation_metrics(task.ideal_prediction(loaded))
    if metric not in values:
        raise MedtlError(
            f"--metric_for_best_model must be one of {', '.join(sorted(values))}, but is {metric!r}."
            f"{nearest(metric, values)}"
        )
    if not math.isfinite(values[metric]):
        counts = loaded.counts()["validation"]
        missing = [label for label in loaded.labels if not counts.get(label)]
        raise MedtlError(
            f"--metric_for_best_model {metric} is undefined on the validation split"
            + (f", which has no image of {', '.join(missing)}" if missing else "")
            + ". Use --metric_for_best_model loss, or a larger --validation_fraction."
        )
    if recipe.greater_is_better == metric.endswith(LOWER_IS_BETTER):
        given = str(recipe.greater_is_better).lower()
        raise MedtlError(f"--greater_is_better {given} would choose the checkpoint with the worst {metric}. Remove it.")


def _check_batches(recipe: Recipe, number: int, model: PreTrainedModel, processor: Any) -> None:
    """Check that every batch has enough images; `number` is that of training images."""
    batch, accumulation = recipe.undivided
    drops = recipe.dataloader_drop_last
    if drops and number < batch:
        raise MedtlError(
            f"--dataloader_drop_last leaves no batch: there are {number} training images, and a batch has {batch} "
            "(--per_device_train_batch_size). Use a smaller batch, or remove --dataloader_drop_last."
        )

    def smallest(drop_last: bool) -> int:
        return smallest_batch(number, batch, accumulation, drop_last, recipe.world_size)

    if smallest(drops) > 1 or not _fails_on_one_image(recipe, model, processor):
        return
    reason = f"The batch norm of {type(model).__name__} cannot be trained on a batch of one image"
    if number >= batch and smallest(True) > 1:
        recipe.dataloader_drop_last = True
        logger.warning(
            "%s, which the last one would be: it is left out, another image in each epoch (--dataloader_drop_last).",
            reason,
        )
        return
    raise MedtlError(
        f"{reason}, but there would be some: {number} training images, --per_device_train_batch_size {batch}, "
        f"{recipe.world_size} process(es). Set --per_device_train_batch_size to {2 * recipe.world_size} or more."
    )


def _fails_on_one_image(recipe: Recipe, model: PreTrainedModel, processor: Any) -> bool:
    """Return True if a training step on one image fails: batch norm of maps of 1 × 1 has nothing to average over."""
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return False
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    training, plan = model.training, recipe.plan
    depths = parameter_depths(model) if plan.by_blocks else None
    blocks = count_blocks(depths) if depths else 0
    height, width = _image_shape(processor)
    try:
        set_trainable(model, plan.trainable_blocks(plan.epochs, blocks), depths)
        model.train()
        if plan.name not in ("full", "differential"):
            eval_frozen_modules(model)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model(pixel_values=torch.zeros(1, 3, height, width))
    except ValueError as error:
        return "more than 1 value per channel" in str(error)
    finally:
        model.train(training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad = wanted[name]
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
    return False


def _image_shape(processor: Any) -> tuple[int, int]:
    """Return height and width of a preprocessed image."""
    return to_uint8(processor, [Image.new("RGB", (64, 64))]).shape[1:3]


def _count_steps(recipe: Recipe, number: int) -> int:
    """Return the number of optimizer steps of a run on this number of training images."""
    steps = math.ceil(number / math.prod(recipe.undivided) * recipe.num_train_epochs)
    return recipe.max_steps if recipe.max_steps > 0 else max(1, steps)


def _check_optimizer(recipe: Recipe, model: PreTrainedModel, steps: int) -> None:
    """Make the optimizer and its schedule for a single parameter."""
    with _option_errors("--optim", option_name(recipe.optim)):
        kind, options = MedicalTrainer.get_optimizer_cls_and_kwargs(recipe, model)
        single: Any = [nn.Parameter(torch.zeros(1))]
        # Some take the whole model, or one optimizer for each parameter.
        special = {"model", "optimizer_dict", "params"} & options.keys()
        optimizer = torch.optim.SGD(single, recipe.learning_rate) if special else kind(single, **options)
    if recipe.lr_step_epochs:  # a schedule of our own
        return
    name = option_name(recipe.lr_scheduler_type)
    with _option_errors("--lr_scheduler_type", name, "Its values go in --lr_scheduler_kwargs."):
        get_scheduler(
            name,
            optimizer,
            num_warmup_steps=recipe.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=recipe.lr_scheduler_kwargs,  # type: ignore[arg-type]
        )


@contextlib.contextmanager
def _option_errors(option: str, value: Any, advice: str = "") -> Iterator[None]:
    """Turn any error of a library into one that names the option."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise MedtlError(f"{option} {value} does not work with these options: {reason}. {advice}".rstrip()) from error
