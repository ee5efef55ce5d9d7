"""What happens at epochs and steps."""

import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState, TrainerControl, TrainerState

if TYPE_CHECKING:
    from hf_medtl.training.trainer import MedicalTrainer


class Progress(TrainerCallback, ExportableState):
    """Tells the pictures the epoch, counts training seconds over resumes, and turns Ctrl-C into a checkpoint."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.interrupted = seconds, False
        self.started: float | None = None
        self.previous: Any = None

    def state(self) -> dict[str, Any]:
        """What goes into trainer_state.json."""
        return {"args": {"seconds": self.total_seconds()}, "attributes": {}}

    def total_seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return self.seconds + (0.0 if self.started is None else time.monotonic() - self.started)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.started = time.monotonic()
        if threading.current_thread() is threading.main_thread():  # signals can be set nowhere else
            self.previous = signal.signal(signal.SIGINT, self._interrupt)

    def on_epoch_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, train_dataloader: Any = None, **kwargs: Any
    ) -> None:
        train_dataloader.dataset.epoch.fill_(int((state.epoch or 0) + 1e-6))

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        stop = self.interrupted
        if args.world_size > 1:  # a signal reaches processes at different steps: they must agree on one
            if state.global_step % max(int(args.logging_steps), 1):
                return
            flag = torch.tensor(int(stop), device=args.device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            stop = self.interrupted = bool(flag)
        if stop:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.seconds, self.started = self.total_seconds(), None
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)

    def _interrupt(self, number: int, frame: Any) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, self.previous)  # the second Ctrl-C ends at once


class Stages(TrainerCallback):
    """Tells the trainer the epoch and the steps."""

    def __init__(self, trainer: "MedicalTrainer") -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.begin_average()
        self.trainer.enter(int((state.epoch or 0) + 1e-6))

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.enter(int((state.epoch or 0) + 1e-6))

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.trainer.ema:
            self.trainer.ema.update(state.global_step)
