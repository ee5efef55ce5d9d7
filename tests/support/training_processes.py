"""Training in a separate process, and its checkpoints."""

import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from tests.support.commands import ROOT, flags, options
from tests.support.process_pool import ForkedProcess


def load_weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return AutoModelForImageClassification.from_pretrained(folder).state_dict()


VIT_RECIPE = str(ROOT / "recipes" / "vit_brain.py")


def training_flags(phantoms: Path, backbone: Path, output: Path, *more: str) -> list[str]:
    """Return flags of a run of 40 steps with a checkpoint every five."""
    values = options(phantoms, backbone, output, num_train_epochs=10, save_strategy="steps", save_steps=5,
                     eval_strategy="steps", eval_steps=5, early_stopping_patience=0, augmentation="brain")  # fmt: skip
    return [*flags(**values), *more]


def wait_for_step(process: ForkedProcess, output: Path, step: int) -> None:
    """Wait until a complete checkpoint of `step` or later exists."""
    for _ in range(60000):
        done = [int(p.parent.name.split("-")[1]) for p in output.glob("checkpoint-*/trainer_state.json")]
        if max(done, default=0) >= step:
            return
        assert process.poll() is None, "the run ended before it could be disturbed"
        time.sleep(0.01)
    raise AssertionError("no checkpoint was written")


def same_weights(weights: dict[str, torch.Tensor], output: Path) -> bool:
    own = load_file(output / "model.safetensors")
    return weights.keys() == own.keys() and all(torch.equal(weights[name], own[name]) for name in weights)
