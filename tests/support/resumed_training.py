"""Trainers without a run around them, their interrupted and resumed training, and comparison of weights."""

from pathlib import Path

import torch

from hf_medtl import Recipe, load
from hf_medtl.runs.preflight import build
from hf_medtl.runs.train import make_trainer
from hf_medtl.training.trainer import MedicalTrainer


def build_trainer(recipe: Recipe) -> MedicalTrainer:
    """Return the trainer of a recipe, as `run` builds it."""
    loaded = load(recipe.dataset, recipe.data_dir, task=recipe.task)
    return make_trainer(recipe, loaded, *build(recipe, loaded))


def copy_weights(trainer: MedicalTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def train_and_resume(make_trainer, family: str, step: int, **more: object) -> tuple[MedicalTrainer, MedicalTrainer]:
    """Return an uninterrupted trainer and one resumed from the checkpoint of a step."""
    more = {"num_train_epochs": 3, "save_strategy": "steps", "eval_strategy": "steps", "save_steps": 1, "eval_steps": 1,
            "save_total_limit": None, "load_best_model_at_end": False, "early_stopping_patience": 0,
            "learning_rate": 0.01, "augmentation": "brain", **more}  # fmt: skip
    uninterrupted = make_trainer(family, **more)
    uninterrupted.train()
    resumed = make_trainer(family, **more)
    resumed.train(resume_from_checkpoint=str(Path(resumed.args.output_dir) / f"checkpoint-{step}"))
    return uninterrupted, resumed


def same_weights(a: MedicalTrainer, b: MedicalTrainer) -> bool:
    own, other = copy_weights(a), copy_weights(b)
    return own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)
