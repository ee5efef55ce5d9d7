"""Trackers of --report_to (Trackio, TensorBoard, W&B, MLflow ...): there or not, and what they are told of the test."""

import os
from typing import Any

from transformers import Trainer
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from hf_medtl.errors import MedtlError

OURS = ("tensorboard", "trackio")  # in the extra


def check_trackers(names: list[str]) -> None:
    """Refuse trackers that could not be used, before anything is trained.

    Raises:
        MedtlError: an unknown name, or a package that is not installed.
    """
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise MedtlError(f"--report_to is none, all, or one of {known}; found {name!r}.")
        if name not in get_available_reporting_integrations():
            package = "'hf_medtl[tracking]'" if name in OURS else name.replace("_", "-")
            raise MedtlError(f"--report_to {name}: it is not installed here. pip install {package}")


def trackers(trainer: Trainer) -> list[Any]:
    """The callbacks of --report_to."""
    kinds = tuple(INTEGRATION_TO_CALLBACK.values())
    return [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, kinds)]


def hold_open(trainer: Trainer) -> None:
    """Let trackers outlive the training, or the test's results would begin a run of their own; `close` ends them."""
    os.environ.setdefault("WANDB_CONSOLE", "off")  # what is on the screen names folders of this machine
    for tracker in trackers(trainer):
        tracker.on_train_end = lambda *args, **kwargs: None


def log_results(trainer: Trainer, result: dict[str, Any]) -> None:
    """Send the metrics of results.json with their limits: test_roc_auc, test_roc_auc_low, external_roc_auc ..."""
    parts = {"test": result, "external": result.get("external", {"metrics": {}})}
    values = {
        f"{part}_{name}{suffix}": metric[key]
        for part, its in parts.items()
        for name, metric in its["metrics"].items()
        for key, suffix in (("value", ""), ("low", "_low"), ("high", "_high"))
        if metric[key] is not None
    }
    for tracker in trackers(trainer):
        tracker.on_log(trainer.args, trainer.state, trainer.control, logs=values, model=trainer.model)


def close(trainer: Trainer) -> None:
    """End what `hold_open` held, with all written."""
    for tracker in trackers(trainer):
        tracker.__dict__.pop("on_train_end", None)
        tracker.on_train_end(
            trainer.args, trainer.state, trainer.control, model=trainer.model, processing_class=trainer.processing_class
        )
