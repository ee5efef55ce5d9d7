"""What happens at epochs and steps."""

import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState, TrainerControl, TrainerState

if TYPE_CHECKING:
    pass


class Progress(TrainerCallback, ExportableState):
    """Tells the pictures the epoch, counts training seconds over resumes, turns Ctrl-C and SIGTERM into a checkpoint.

    Not `enable_jit_checkpoint` of transformers 5.23: it waits 3 seconds, lets each process save at a step of its own
    (they then wait for each other for ever), saves in the middle of an optimizer step, when random numbers of it are
    spent, and the run would go on as if training were finished.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.processes = seconds, 1
        self.asked = 0  # number of the signal that this process got
        self.interrupted = 0  # the same when all processes know and stop
        self.cut = False  # in the middle of an epoch
        self.started: float | None = None
        self.previous: dict[int, Any] = {}

    def state(self) -> dict[str, Any]:
        """What goes into trainer_state.json."""
        return {"args": {"seconds": self.total_seconds()}, "attributes": {"processes": self.processes}}

    def total_seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return self.seconds + (0.0 if self.started is None else time.monotonic() - self.started)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.started, self.processes = time.monotonic(), args.world_size
        if threading.current_thread() is threading.main_thread():  # signals can be set nowhere else
            self.previous = {n: signal.signal(n, self._ask) for n in (signal.SIGINT, signal.SIGTERM)}

    def on_epoch_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, train_dataloader: Any = None, **kwargs: Any
    ) -> None:
        train_dataloader.dataset.epoch.fill_(int((state.epoch or 0) + 1e-6))

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.interrupted = self.asked
        if args.world_size > 1:  # a signal reaches processes at different steps: they must agree on one
            number = torch.tensor(self.asked, device=args.device)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
            self.interrupted = int(number)
        ends = float(state.epoch or 0).is_integer() or state.global_step >= state.max_steps
        if self.interrupted and not ends:
            self.cut = control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.cut:  # what comes after an epoch must not come in its middle: it counts for best and for patience
            control.should_evaluate = control.should_save = False
        elif self.interrupted:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.seconds, self.started = self.total_seconds(), None
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if self.asked and not self.interrupted:  # it came after the last step
            signal.raise_signal(self.asked)

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = number
        if number == signal.SIGINT:  # the second Ctrl-C ends at once; SIGTERM comes from scheduler and launcher both
            signal.signal(number, self.previous[number])
