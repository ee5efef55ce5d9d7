"""Checks of options inherited from TrainingArguments: their ranges, and those that training here does not support."""

import functools
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from typing import Any

from hf_medtl.common.text import suggest
from hf_medtl.errors import MedtlError
from hf_medtl.training.flags import all_flags
from hf_medtl.training.options import LISTS

# Lowest value -> options; None is allowed.
LOWEST: dict[int, tuple[str, ...]] = {
    0: (
        *("adam_beta1", "adam_beta2", "adam_epsilon", "data_seed", "dataloader_num_workers", "ddp_timeout"),
        *(
            "early_stopping_patience",
            "eval_delay",
            "fold",
            "folds",
            "head_learning_rate",
            "largest_components",
            "learning_rate",
        ),
        *("max_grad_norm", "save_total_limit", "seed", "split_seed", "warmup_steps", "weight_decay"),
    ),
    1: (
        *("dataloader_prefetch_factor", "eval_accumulation_steps", "gradient_accumulation_steps"),
        *("per_device_eval_batch_size", "per_device_train_batch_size", "torch_empty_cache_steps"),
    ),
}
ABOVE_ZERO = ("eval_steps", "logging_steps", "num_train_epochs", "save_steps")
BELOW = {"adam_beta1": 1, "adam_beta2": 1, **dict.fromkeys(("data_seed", "seed", "split_seed"), 2**32)}

# Option -> why training here does not support it.
UNSUPPORTED = {
    "batch_eval_metrics": "metrics of this project need all validation images at once.",
    "eval_do_concat_batches": "metrics of this project need all validation images at once.",
    "label_names": "the task knows which inputs of the model are labels.",
    "parallelism_config": "parallelism within a model is for language models.",
    "prediction_loss_only": "validation would have no metrics.",
    "remove_unused_columns": "it would remove the images.",
    "use_liger_kernel": "liger kernels are for language models.",
}


def option_name(value: Any) -> str:
    """Return the name of an option of TrainingArguments that is an enumeration, or is given as text."""
    return str(getattr(value, "value", value))


def check_names(cls: Any) -> Any:
    """Decorate a dataclass of options to refuse unknown ones, and values that are not among the choices of an option.

    Raises:
        MedtlError: the option with the nearest name, or the choices.
    """
    construct = cls.__init__

    @functools.wraps(construct)
    def checked(self: Any, *args: Any, **options: Any) -> None:
        flags = all_flags()
        for name, value in options.items():
            if name not in flags:
                raise MedtlError(f"Unknown option {name!r}. {suggest(name, flags)}")
            if flags[name].choices and name not in LISTS and isinstance(value, str):  # also an enumeration
                flags[name].convert(option_name(value))
        construct(self, *args, **options)

    cls.__init__ = checked
    return cls


def check_arguments(recipe: Any) -> None:
    """Check ranges of options, and refuse those that training here does not support.

    Args:
        recipe: a `Recipe`, or another object with the options as attributes and a method `refuse`.

    Raises:
        MedtlError: an option, with what is allowed.
    """
    lowest = {name: low for low, names in LOWEST.items() for name in names}
    for name in (*lowest, *ABOVE_ZERO):
        value = getattr(recipe, name)
        if value is None:
            continue
        low, high = lowest.get(name, 0), BELOW.get(name, math.inf)
        number = isinstance(value, Real) and not isinstance(value, bool)  # also of numpy
        if not number or not low <= value < high or (name in ABOVE_ZERO and value == 0):
            above = "above 0" if name in ABOVE_ZERO else f"at least {low}"
            below = "" if high == math.inf else f" and below {high}"
            raise MedtlError(f"--{name} must be a number {above}{below}, but is {value!r}.")
    if recipe.do_train is False:
        raise MedtlError("--do_train false has no effect: a run is trained. Use --dry_run, or hf-medtl evaluate RUN.")
    if recipe.max_steps != -1 and recipe.max_steps < 1:
        raise MedtlError(f"--max_steps must be at least 1, or -1 to count epochs, but is {recipe.max_steps}.")
    for name, reason in UNSUPPORTED.items():
        recipe.refuse((name,), f"{reason} Remove the option.")
    if recipe.dataloader_num_workers == 0:
        recipe.refuse(
            ("dataloader_persistent_workers", "dataloader_prefetch_factor"),
            "there are no workers. Add --dataloader_num_workers, such as --dataloader_num_workers 2.",
        )
    if recipe.torch_compile_backend is not None:
        from accelerate.utils import DynamoBackend  # imports torch, which takes seconds

        backends = [backend.value.lower() for backend in DynamoBackend]
        if recipe.torch_compile_backend.lower() not in backends:
            raise MedtlError(
                f"--torch_compile_backend must be one of {', '.join(backends)}, but is "
                f"{recipe.torch_compile_backend!r}."
            )
    _check_strategies(recipe)


def _check_strategies(recipe: Any) -> None:
    """Check that evaluation, saving and the choice of the best checkpoint go together."""
    evaluation, saving = map(option_name, (recipe.eval_strategy, recipe.save_strategy))
    if not recipe.load_best_model_at_end:
        return
    if evaluation == "no" or saving == "no":
        raise MedtlError(
            "--load_best_model_at_end needs --eval_strategy and --save_strategy to be epoch or steps. Set both, or "
            "give --load_best_model_at_end false --early_stopping_patience 0."
        )
    if saving != "best" and evaluation != saving:
        raise MedtlError(
            f"--eval_strategy {evaluation} and --save_strategy {saving} differ, but the best checkpoint is chosen by "
            f"evaluating each. Give both the same value: --eval_strategy {evaluation} --save_strategy {evaluation}."
        )


@contextmanager
def argument_errors(chosen: Mapping[str, Any]) -> Iterator[None]:
    """Turn any error of the construction of TrainingArguments into a MedtlError of one line.

    Args:
        chosen: options of TrainingArguments that were given, and their values: what the error may be about.

    Raises:
        MedtlError: an option that transformers refuses, with its reason.
    """
    try:
        yield
    except MedtlError:
        raise
    except Exception as error:  # ValueError mostly, but also KeyError, OSError, ImportError, ... of files and packages
        reason = " ".join(str(error).split()) or type(error).__name__
        words = {*re.findall(r"\w+", reason)}
        named = [name for name, value in chosen.items() if name in words or (str(value) and str(value) in reason)]
        what = " or ".join(f"--{name}" for name in named or chosen) or "An option"
        raise MedtlError(f"{what} is invalid: {reason.rstrip('.')}. See --help.") from error
