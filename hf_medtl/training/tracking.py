"""Experiment trackers of --report_to (Trackio, TensorBoard, W&B, MLflow, ...), including logging of test results."""

import os
from typing import Any

from transformers import Trainer
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from hf_medtl.common.extras import install_command
from hf_medtl.errors import MedtlError

IN_EXTRA = ("tensorboard", "trackio")  # installed by the extra `tracking`


def check_trackers(names: list[str]) -> None:
    """Check before training that the trackers can be used.

    Raises:
        MedtlError: an unknown name, or a package that is not installed.
    """
    for name in names:
        if str(name) not in INTEGRATION_TO_CALLBACK:  # YAML has lists in lists
            available = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise MedtlError(f"--report_to must be none, all, or one of {available}, but is {name!r}.")
        if name not in get_available_reporting_integrations():
            command = install_command("tracking") if name in IN_EXTRA else f"pip install {name.replace('_', '-')}"
            raise MedtlError(f"--report_to {name}: the package is not installed. Run: {command}")


def tracker_callbacks(trainer: Trainer) -> list[Any]:
    """Return the callbacks of --report_to."""
    classes = tuple(INTEGRATION_TO_CALLBACK.values())
    return [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, classes)]


def keep_trackers_open(trainer: Trainer) -> None:
    """Keep trackers open after training, or test results would start a new run; see `close_trackers`."""
    os.environ.setdefault("WANDB_CONSOLE", "off")  # console output names local folders
    for tracker in tracker_callbacks(trainer):
        tracker.on_train_end = lambda *args, **kwargs: None


def log_results(trainer: Trainer, result: dict[str, Any]) -> None:
    """Log the metrics of results.json with their limits: test_roc_auc, test_roc_auc_low, external_roc_auc, ..."""
    parts = {"test": result, "external": result.get("external", {"metrics": {}})}
    values = {
        f"{split}_{name}{suffix}": metric[key]
        for split, part in parts.items()
        for name, metric in part["metrics"].items()
        for key, suffix in (("value", ""), ("low", "_low"), ("high", "_high"))
        if metric[key] is not None
    }
    for tracker in tracker_callbacks(trainer):
        tracker.on_log(trainer.args, trainer.state, trainer.control, logs=values, model=trainer.model)


def close_trackers(trainer: Trainer) -> None:
    """End the trackers that `keep_trackers_open` kept, with everything written."""
    for tracker in tracker_callbacks(trainer):
        tracker.__dict__.pop("on_train_end", None)
        tracker.on_train_end(
            trainer.args, trainer.state, trainer.control, model=trainer.model, processing_class=trainer.processing_class
        )
