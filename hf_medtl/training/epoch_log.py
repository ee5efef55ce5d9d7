"""One readable line of the log for each epoch, and a progress bar without Trainer's dicts."""

import logging
import time
from typing import Any

from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState

from hf_medtl.evaluation.names import METRIC_NAMES

logger = logging.getLogger("hf_medtl")

MAIN_METRICS = ("roc_auc", "dice")  # that of the task is shown besides the metric that chooses the best checkpoint


class BarCallback(ProgressCallback):
    """Progress bar of training and validation; `EpochLog` tells the numbers."""

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        """Write nothing."""

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Close the bar and clear its line."""
        if self.training_bar is not None:
            self.training_bar.leave = False
        super().on_train_end(args, state, control, **kwargs)


class EpochLog(TrainerCallback):
    """Log a line at each evaluation, or at the end of each epoch without one."""

    def __init__(self) -> None:
        self.loss: float | None = None
        self.rate = 0.0
        self.started = time.monotonic()

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the clock."""
        self.started = time.monotonic()

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remember the learning rate of the step: at its end it is that of the next one."""
        self.rate = float(max(group["lr"] for group in kwargs["optimizer"].param_groups))

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        """Remember the latest training loss."""
        self.loss = (logs or {}).get("loss", self.loss)

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Log the line with the metrics of the validation split."""
        if state.global_step and "eval_loss" in (metrics or {}):
            self._log_line(args, state, metrics)

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the line if no evaluation follows."""
        if str(getattr(args.eval_strategy, "value", args.eval_strategy)) == "no":
            self._log_line(args, state, {})

    def _log_line(self, args: Any, state: TrainerState, metrics: dict[str, float]) -> None:
        if not state.is_world_process_zero:
            return
        parts = [] if self.loss is None else [f"training loss {self.loss:.4g}"]
        if "eval_loss" in metrics:
            parts.append(f"validation loss {metrics['eval_loss']:.4g}")
        chosen = str(args.metric_for_best_model or "").removeprefix("eval_")
        for name in dict.fromkeys((*MAIN_METRICS, chosen)):
            if name != "loss" and f"eval_{name}" in metrics:
                parts.append(f"{METRIC_NAMES.get(name, name)} {metrics[f'eval_{name}']:.3f}")
        seconds, self.started = time.monotonic() - self.started, time.monotonic()
        whole = f"{state.num_train_epochs:g}" if args.max_steps > 0 else f"{args.num_train_epochs:g}"
        parts += [f"learning rate {self.rate:.2g}", f"{seconds:.0f} s"]
        logger.info("Epoch %.4g/%s: %s", state.epoch or 0, whole, ", ".join(parts))
