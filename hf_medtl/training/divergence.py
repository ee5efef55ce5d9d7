"""Stops training when the loss or the weights are not finite, with the step and the learning rate."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_medtl.errors import MedtlError

ADVICE = (
    "Start again in another --output_dir with a lower --learning_rate, more --warmup_steps or a smaller --max_grad_norm"
)
# With fp16 the gradient scaler skips such steps and lowers its factor, so a few are usual.
TOLERATED_WITH_FP16 = 10


class DivergenceCheck:
    """Raise an error when training diverges.

    Args:
        recipe: options of the run.
    """

    def __init__(self, recipe: Any) -> None:
        self.recipe, self.skipped = recipe, 0

    def check_loss(self, loss: torch.Tensor, split: str, state: Any, rate: float) -> None:
        """Check the loss of a batch.

        Args:
            loss: scalar.
            split: training or validation.
            state: of the Trainer; its `global_step` counts the finished steps.
            rate: learning rate.

        Raises:
            MedtlError: the loss is not finite; with fp16, that of several training batches in a row.
        """
        if torch.isfinite(loss).all():
            self.skipped = 0
            return
        self.skipped += 1
        if split == "training" and self.recipe.fp16 and self.skipped < TOLERATED_WITH_FP16:
            return
        step = state.global_step + (split == "training")
        raise MedtlError(
            f"The {split} loss is {float(loss):g} at step {step} (epoch {state.epoch or 0:.2f}) with learning rate "
            f"{rate:g}. {self._advice()}"
        )

    def check_weights(self, model: nn.Module) -> None:
        """Check the weights after training.

        Raises:
            MedtlError: some are not finite.
        """
        names = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise MedtlError(f"Training ended with weights that are not finite: {names[0]}{more}. {self._advice()}")

    def _advice(self) -> str:
        precision = ", or --mixed_precision no" if self.recipe.fp16 or self.recipe.bf16 else ""
        newest = max(
            Path(str(self.recipe.output_dir)).glob("checkpoint-*"),
            key=lambda path: int(path.name.removeprefix("checkpoint-")),
            default=None,
        )
        kept = f" The last checkpoint is {newest}." if newest else ""
        return f"{ADVICE}{precision}.{kept}"
