"""Trainer callbacks: progress with a checkpoint on signals, and the fine-tuning strategy of each epoch."""

import signal
import threading
import time
from typing import Any

import torch
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_callback import ExportableState, TrainerControl, TrainerState


class Progress(TrainerCallback, ExportableState):
    """Set the dataset's epoch, sum training time over resumes, write a checkpoint on Ctrl-C and SIGTERM.

    Not `enable_jit_checkpoint` of transformers 5.23: it waits 3 seconds, lets each process save at a different
    step (they then wait for each other forever), saves within an optimizer step, when some of its random numbers are
    already used, and the run would continue as if training had finished.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.processes = seconds, 1
        self.received = 0  # number of the signal that this process received
        self.interrupted = 0  # the same, once all processes agree to stop
        self.cut = False  # stopped within an epoch
        self.started: float | None = None
        self.previous: dict[int, Any] = {}

    def state(self) -> dict[str, Any]:
        """Return the state for trainer_state.json."""
        return {"args": {"seconds": self.total_seconds()}, "attributes": {"processes": self.processes}}

    def total_seconds(self) -> float:
        """Return the seconds of training so far, including those before a resume."""
        return self.seconds + (0.0 if self.started is None else time.monotonic() - self.started)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the clock and install the signal handlers."""
        self.started, self.processes = time.monotonic(), args.world_size
        if threading.current_thread() is threading.main_thread():  # handlers can only be set there
            self.previous = {n: signal.signal(n, self._receive) for n in (signal.SIGINT, signal.SIGTERM)}

    def on_epoch_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, train_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Set the epoch of the dataset."""
        train_dataloader.dataset.epoch.fill_(int((state.epoch or 0) + 1e-6))

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop with a checkpoint if any process has received a signal."""
        self.interrupted = self.received
        if args.world_size > 1:  # processes receive the signal at different steps and must agree on one
            number = torch.tensor(self.received, device=args.device)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
            self.interrupted = int(number)
        epoch_ends = float(state.epoch or 0).is_integer() or state.global_step >= state.max_steps
        if self.interrupted and not epoch_ends:
            self.cut = control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save at the end of an epoch that a signal stopped."""
        if self.cut:  # no evaluation within an epoch: it would count for the best checkpoint and for patience
            control.should_evaluate = control.should_save = False
        elif self.interrupted:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop the clock and restore the signal handlers."""
        self.seconds, self.started = self.total_seconds(), None
        self.restore_handlers()
        if self.received and not self.interrupted:  # received after the last step
            signal.raise_signal(self.received)

    def restore_handlers(self) -> None:
        """Restore the signal handlers from before training."""
        for number, handler in self.previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set by Python
        self.previous = {}

    def _receive(self, number: int, frame: Any) -> None:
        self.received = number
        if number == signal.SIGINT:  # a second Ctrl-C ends at once; SIGTERM is sent by both scheduler and launcher
            signal.signal(number, self.previous.get(number, signal.SIG_DFL))


class StrategyCallback(TrainerCallback):
    """Apply the strategy at each epoch, update the EMA at each step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the EMA and apply the strategy, or stop if training had already finished."""
        stoppers = [c for c in self.trainer.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback)]
        stopped = any(c.early_stopping_patience_counter >= c.early_stopping_patience for c in stoppers)
        if stopped or state.global_step >= state.max_steps:  # killed after training: Trainer would train on
            control.should_training_stop = True
        self.trainer.start_ema()
        self.trainer.apply_epoch_strategy(int((state.epoch or 0) + 1e-6))

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Apply the strategy of the epoch."""
        self.trainer.apply_epoch_strategy(int((state.epoch or 0) + 1e-6))

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Update the EMA."""
        if self.trainer.ema:
            self.trainer.ema.update(state.global_step)
