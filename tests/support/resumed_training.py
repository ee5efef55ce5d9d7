"""Training that is stopped and resumed, and comparison of weights."""

from pathlib import Path

import torch

from hf_medtl.training.trainer import MedicalTrainer


def copy_weights(trainer: MedicalTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def train_and_resume(trainer_of, family: str, step: int, **more: object) -> tuple[MedicalTrainer, MedicalTrainer]:
    """One trainer that ran through, and one that went on from the checkpoint of a step."""
    more = {"num_train_epochs": 3, "save_strategy": "steps", "eval_strategy": "steps", "save_steps": 1, "eval_steps": 1,
            "save_total_limit": None, "load_best_model_at_end": False, "early_stopping_patience": 0,
            "learning_rate": 0.01, "augmentation": "brain", **more}  # fmt: skip
    through = trainer_of(family, **more)
    through.train()
    again = trainer_of(family, **more)
    again.train(resume_from_checkpoint=str(Path(again.args.output_dir) / f"checkpoint-{step}"))
    return through, again


def same_weights(a: MedicalTrainer, b: MedicalTrainer) -> bool:
    mine, other = copy_weights(a), copy_weights(b)
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)
