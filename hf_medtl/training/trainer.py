"""The Trainer, with its few overrides."""

import math
import signal
import threading
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, EarlyStoppingCallback, EvalPrediction, PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState, TrainerControl, TrainerState

from hf_medtl.data.cache import Pictures
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.metrics import classification_metrics
from hf_medtl.models.head import find_head
from hf_medtl.training.recipe import Recipe


class MedicalTrainer(Trainer):
    """`transformers.Trainer` on uint8 pictures, which restores every tensor and saves no pickled arguments."""

    args: Recipe
    model: PreTrainedModel

    def __init__(
        self,
        recipe: Recipe,
        model: PreTrainedModel,
        processor: Any,
        statistics: tuple[torch.Tensor, torch.Tensor],
        train: Pictures,
        validation: Pictures,
    ) -> None:
        callbacks: list[TrainerCallback] = [Progress()]
        if recipe.early_stopping_patience:
            callbacks.append(EarlyStoppingCallback(recipe.early_stopping_patience))
        super().__init__(
            model=model,
            args=recipe,
            processing_class=processor,
            compute_metrics=validation_metrics,
            callbacks=callbacks,
            train_dataset=train,
            eval_dataset=validation,
            # With soft labels the model would choose a loss for several labels at once.
            compute_loss_func=self._cross_entropy if recipe.mixup or recipe.cutmix else None,
        )
        self.mean, self.std = (value.to(self.args.device) for value in statistics)
        self.draw = (-1, 0)  # optimizer step and batch in it

    @property
    def progress(self) -> "Progress":
        """The callback in use: resuming replaces the one given at first."""
        return next(c for c in self.callback_handler.callbacks if isinstance(c, Progress))

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        # uint8 travels to the device, a quarter of the bytes, and is normalised there. In place: allocating the batch
        # again takes longer than the arithmetic.
        inputs = super()._prepare_inputs(inputs)
        inputs["pixel_values"] = inputs["pixel_values"].float().sub_(self.mean).div_(self.std)
        if self.model.training and (self.args.mixup or self.args.cutmix):
            step = self.state.global_step
            self.draw = (step, self.draw[1] + 1 if self.draw[0] == step else 0)
            # Nothing but where training is: a resumed run draws the same, and each process its own.
            rng = np.random.default_rng([self.args.seed, *self.draw, self.args.process_index])
            labels = nn.functional.one_hot(inputs["labels"], cast(int, self.model.config.num_labels)).float()
            mixed = mix(inputs["pixel_values"], labels, self.args.mixup, self.args.cutmix, rng)
            inputs["pixel_values"], inputs["labels"] = mixed
        return inputs

    def _cross_entropy(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Cross entropy of labels (B,) or soft labels (B, K), over the pictures of all batches of an optimizer step."""
        total = nn.functional.cross_entropy(
            outputs["logits"], labels, reduction="sum", label_smoothing=self.args.label_smoothing_factor
        )
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW or what --optim names, with --head_learning_rate for the head."""
        if self.args.head_learning_rate is None or self.optimizer is not None:
            return super().create_optimizer(model)
        model = self.model if model is None else model
        decayed = set(self.get_decay_parameter_names(model))
        head = {id(p) for p in find_head(self.model).parameters()}
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((id(parameter) in head, name in decayed), []).append(parameter)
        optimizer, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        self.optimizer = optimizer(
            [
                {
                    "params": parameters,
                    "lr": self.args.head_learning_rate if in_head else self.args.learning_rate,
                    "weight_decay": self.args.weight_decay if is_decayed else 0.0,
                }
                for (in_head, is_decayed), parameters in groups.items()
            ],
            **options,
        )
        return self.optimizer

    # Checkpoints have the Hub's tensor names, which plain load_state_dict half ignores without an error (transformers
    # issue #48805). Both overrides can go when its fix, PR #48822, is in the oldest version that we support.
    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or not self.state.best_model_checkpoint:
            return super()._load_best_model()
        best = Path(self.state.best_model_checkpoint)
        if not best.is_dir():  # the run folder was moved before it was resumed
            best = Path(str(self.args.output_dir)) / best.name
        self._restore(self.model, str(best))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._restore(self.model if model is None else model, resume_from_checkpoint)

    def _restore(self, model: nn.Module, folder: str) -> None:
        saved = type(self.model).from_pretrained(folder, dtype=self.model.dtype)
        model.load_state_dict(saved.state_dict(), strict=True)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        arguments = Path(output_dir or str(self.args.output_dir)) / "training_args.bin"
        arguments.unlink(missing_ok=True)  # a pickle; recipe.yaml says it all


def mix(
    pixels: torch.Tensor, labels: torch.Tensor, mixup: float, cutmix: float, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix each picture of a batch with its neighbour, by mixup or by CutMix, or by either in half of the batches.

    Args:
        pixels: (B, 3, H, W).
        labels: (B, K), one-hot or soft.
        mixup: a of the share's Beta(a, a), 0 = off (Zhang et al. 2018, https://arxiv.org/abs/1710.09412).
        cutmix: the same for the area's share (Yun et al. 2019, https://arxiv.org/abs/1905.04899).
        rng: all draws come from here.

    Returns:
        Pixels and labels (B, K), which are mixed as the pixels are.
    """
    cut = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
    alpha = cutmix if cut else mixup
    kept = float(rng.beta(alpha, alpha))
    other = pixels.roll(1, 0)
    if cut:
        height, width = pixels.shape[-2:]
        half = math.sqrt(1 - kept) / 2
        y, x = rng.random(2)  # the centre; what lies outside the picture is cut off
        top, bottom = (round(min(max(y + side, 0), 1) * height) for side in (-half, half))
        left, right = (round(min(max(x + side, 0), 1) * width) for side in (-half, half))
        pixels = pixels.clone()
        pixels[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        kept = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        pixels = torch.lerp(other, pixels, kept)
    return pixels, torch.lerp(labels.roll(1, 0), labels, kept)


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


def validation_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Metrics of each epoch on the validation split, with the plain threshold 0.5 or argmax."""
    logits = torch.as_tensor(np.asarray(prediction.predictions))
    probabilities = logits.double().softmax(dim=1).numpy()
    values = classification_metrics(np.asarray(prediction.label_ids), probabilities, positive=logits.shape[1] - 1)
    return {name: float(value) for name, value in values.items()}


def find_checkpoint(wish: str | None, output_dir: Path, labels: tuple[str, ...]) -> str | None:
    """Folder to resume from: "auto" or "true" is the newest whole checkpoint below `output_dir`, or None.

    Raises:
        MedtlError: the folder is no checkpoint, or one of other labels.
    """
    if not wish or str(wish).lower() in ("none", "false", "no"):
        return None
    folder = wish
    if str(wish).lower() in ("auto", "true", "last"):
        whole = [state.parent for state in output_dir.glob("checkpoint-*/trainer_state.json")]  # written last
        if not whole:
            return None
        folder = str(max(whole, key=lambda path: int(path.name.removeprefix("checkpoint-"))))
    if not (Path(folder) / "trainer_state.json").is_file():
        raise MedtlError(
            f"{folder} is not a whole checkpoint: it has no trainer_state.json. Give a checkpoint-* folder of the run, "
            "or --resume_from_checkpoint auto."
        )
    found_labels = tuple(AutoConfig.from_pretrained(folder).id2label.values())
    if found_labels != labels:
        raise MedtlError(
            f"{folder} is a checkpoint for the labels {', '.join(found_labels)}; this data set has {', '.join(labels)}."
            " Resume with the data set that it was made with, or give it as --model_name_or_path to start from it."
        )
    return folder
