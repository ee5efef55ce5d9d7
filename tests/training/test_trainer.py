"""MedicalTrainer: best checkpoint, exact resuming, and augmentation that is independent of restarts."""

import json
import os
import re
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback

from hf_medtl import MedtlError, Recipe, run
from hf_medtl.data.augmentation import get_augmentation
from hf_medtl.models.heads import find_head
from hf_medtl.training.checkpoints import find_checkpoint
from hf_medtl.training.divergence import DivergenceCheck
from tests.support.commands import run_command
from tests.support.training_processes import VIT_RECIPE, load_weights, same_weights, training_flags, wait_for_step


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit", "deit", "dinov2", "swin", "convnext", "timm", "cnn"])
def test_best_checkpoint_and_resume_restore_every_tensor(family, make_trainer):
    """TRAP A: transformers silently restores only 8 of a ViT's 40 tensors."""
    trainer = make_trainer(
        family, max_steps=2, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    for restore in (trainer._load_best_model, lambda: trainer._load_from_checkpoint(best)):
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.fill_(7.0)
        restore()
        now = trainer.model.state_dict()
        saved = load_weights(best)
        assert now.keys() == saved.keys()
        assert [name for name in saved if not torch.equal(now[name], saved[name])] == []


def test_batches_keep_uint8_images_and_are_normalized_once(make_trainer):
    """TRAP F: remove_unused_columns would remove the images."""
    trainer = make_trainer()
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].dtype == torch.uint8
    assert batch["pixel_values"].shape == (8, 3, 32, 32)
    values = trainer._prepare_inputs(batch)["pixel_values"]
    expected = (batch["pixel_values"] / 255 - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor(
        [0.2, 0.3, 0.25]
    ).view(3, 1, 1)
    assert torch.allclose(values, expected, atol=1e-5)


def test_head_has_its_own_learning_rate(make_trainer):
    trainer = make_trainer(head_learning_rate=0.5, learning_rate=0.1, weight_decay=0.3)
    groups = trainer.create_optimizer().param_groups
    rate = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    head = find_head(trainer.model)
    assert rate[id(head.weight)] == (0.5, 0.3)
    assert rate[id(head.bias)] == (0.5, 0.0)
    assert rate[id(trainer.model.vit.embeddings.patch_embeddings.projection.weight)] == (0.1, 0.3)
    assert len(rate) == len(list(trainer.model.parameters()))


def test_checkpoints_hold_no_pickled_arguments(make_trainer):
    trainer = make_trainer(max_steps=1, save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1)
    trainer.train()
    assert (Path(trainer.args.output_dir) / "checkpoint-1" / "model.safetensors").exists()
    assert not list(Path(trainer.args.output_dir).rglob("training_args.bin"))


@pytest.mark.slow
def test_early_stopping_patience_continues_after_resume(make_trainer):
    """TRAP K: the patience of early stopping would restart at 0."""
    stuck = {"learning_rate": 0.0, "num_train_epochs": 8, "early_stopping_patience": 3, "save_total_limit": None}
    trainer = make_trainer("convnext", **stuck)
    trainer.train()
    assert trainer.state.epoch == 4  # the first evaluation is the best, three more do not improve
    again = make_trainer("convnext", **stuck)
    checkpoint = Path(again.args.output_dir) / f"checkpoint-{trainer.state.global_step * 3 // 4}"
    again.train(resume_from_checkpoint=str(checkpoint))
    assert again.state.epoch == 4
    counter = next(c for c in again.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback))
    assert counter.early_stopping_patience_counter == 3
    after = make_trainer("convnext", **stuck)  # killed after training: Trainer would train another epoch
    after.train(resume_from_checkpoint=str(Path(after.args.output_dir) / f"checkpoint-{trainer.state.global_step}"))
    assert after.state.epoch == 4


def test_augmentation_depends_on_seed_epoch_and_index_only(make_trainer):
    """TRAP V: albumentations ignores global seeds, and restarts its own seed in each worker."""
    data = make_trainer(augmentation="brain").train_dataset

    def epoch(number: int, workers: int) -> torch.Tensor:
        data.epoch.fill_(number)
        torch.manual_seed(number * 17 + workers)
        return torch.cat([b["pixel_values"] for b in DataLoader(data, batch_size=5, num_workers=workers)])

    first = epoch(0, 0)
    assert torch.equal(first, epoch(0, 2))
    assert not torch.equal(first, epoch(1, 0))
    assert torch.equal(epoch(1, 2), epoch(1, 0))
    assert torch.equal(first[3], data[3]["pixel_values"]) is False  # epoch 1 is set now
    data.seed = 99
    assert not torch.equal(first, epoch(0, 0))


@pytest.mark.parametrize("name", ["light", "brain"])
def test_augmentation_keeps_shape_and_type_and_changes_something(name):
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    augment = get_augmentation(name)
    out = augment(image, 1)
    assert (out.shape, out.dtype) == (image.shape, image.dtype)
    assert not np.array_equal(out, image)
    assert np.array_equal(out, augment(image, 1))
    assert not np.array_equal(out, augment(image, 2))


@pytest.fixture(scope="module")
def uninterrupted(phantoms, tiny_checkpoint, tmp_path_factory) -> dict[str, torch.Tensor]:
    """Return the final weights of an uninterrupted run."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    process = run_command(sys.executable, VIT_RECIPE, *training_flags(phantoms, tiny_checkpoint("vit"), output))
    assert process.returncode == 0, process.stderr
    return load_file(output / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["full", "lora", "lp_ft"])
def test_killed_run_resumes_to_the_same_weights(
    strategy, uninterrupted, process_pool, phantoms, tiny_checkpoint, tmp_path
):
    output, weights = tmp_path / "run", uninterrupted
    more = [] if strategy == "full" else ["--strategy", strategy, "--ema_decay", "0.9"]
    if more:
        through = training_flags(phantoms, tiny_checkpoint("vit"), tmp_path / "through", *more)
        run(Recipe.from_cli(runpy.run_path(VIT_RECIPE)["RECIPE"], through))
        weights = load_file(tmp_path / "through" / "model.safetensors")
    flags = training_flags(phantoms, tiny_checkpoint("vit"), output, *more)
    process = process_pool.start_script(VIT_RECIPE, *flags)
    wait_for_step(process, output, 15)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (output / "UNFINISHED").exists()
    assert not (output / "results.json").exists()
    assert process_pool.run_script(VIT_RECIPE, *flags).returncode == 1  # does not overwrite the run
    resumed = process_pool.run_script(VIT_RECIPE, *flags, "--resume_from_checkpoint", "auto")
    assert resumed.returncode == 0, resumed.stderr
    assert same_weights(weights, output)


@pytest.mark.slow
def test_ctrl_c_writes_a_checkpoint_that_resumes_to_the_same_weights(
    uninterrupted, process_pool, phantoms, tiny_checkpoint, tmp_path
):
    output = tmp_path / "run"
    flags = training_flags(phantoms, tiny_checkpoint("vit"), output)
    process = process_pool.start_script(VIT_RECIPE, *flags)
    wait_for_step(process, output, 10)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert (output / "UNFINISHED").exists()
    assert find_checkpoint("auto", output, ("no_lesion", "lesion")) is not None
    resumed = process_pool.run_script(VIT_RECIPE, *flags, "--resume_from_checkpoint", "auto")
    assert resumed.returncode == 0, resumed.stderr
    assert same_weights(uninterrupted, output)


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
def test_rejects_damaged_checkpoints(make_trainer, caplog):
    trainer = make_trainer(max_steps=2, save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1)
    output, labels = Path(trainer.args.output_dir), ("no_lesion", "lesion")
    assert find_checkpoint(None, output, labels) is None
    assert find_checkpoint("auto", output, labels) is None
    trainer.train()
    older, newer = (output / f"checkpoint-{step}" for step in (1, 2))
    assert find_checkpoint("auto", output, labels) == str(newer)
    with pytest.raises(MedtlError, match="checkpoint for the labels no_lesion, lesion"):
        find_checkpoint("auto", output, ("a", "b"))
    state = json.loads((newer / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["Progress"]["attributes"]["processes"] == 1

    def truncate(name: str) -> Callable[[Path], None]:
        return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - 100)

    def claim_two_processes(folder: Path) -> None:
        state["stateful_callbacks"]["Progress"]["attributes"]["processes"] = 2
        (folder / "trainer_state.json").write_text(json.dumps(state))

    for damage, message in (
        (truncate("model.safetensors"), "model.safetensors is truncated"),
        (truncate("optimizer.pt"), "optimizer.pt is truncated"),
        (truncate("scheduler.pt"), "scheduler.pt is truncated"),
        (truncate("rng_state.pth"), "rng_state.pth is truncated"),
        (truncate("trainer_state.json"), "trainer_state.json is truncated"),
        (lambda folder: (folder / "trainer_state.json").unlink(), "it has no trainer_state.json"),
        (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "it lacks weights"),
        (lambda folder: (folder / "optimizer.pt").unlink(), "it lacks an optimizer"),
        (lambda folder: (folder / "rng_state.pth").unlink(), "it lacks a random state"),
        (
            lambda folder: flip_bit(folder / "model.safetensors"),
            "model.safetensors has changed since it was written (its SHA-256 differs)",
        ),
        (
            lambda folder: flip_bit(folder / "optimizer.pt"),
            "optimizer.pt has changed since it was written (its SHA-256 differs)",
        ),
        (lambda folder: (folder / "SHA256SUMS").write_text("?"), "SHA256SUMS is damaged"),
        (claim_two_processes, "it has the random state of only 1 of 2 processes"),
    ):
        backup = shutil.copytree(newer, output / "whole")
        damage(newer)
        caplog.clear()
        assert find_checkpoint("auto", output, labels) == str(older), message
        assert f"{newer} is skipped: {message}." in caplog.text
        with pytest.raises(MedtlError, match=f"not a complete checkpoint: {re.escape(message)}"):
            find_checkpoint(str(newer), output, labels)
        shutil.rmtree(newer)
        backup.rename(newer)
    caplog.set_level("INFO")
    (newer / "SHA256SUMS").unlink()  # of an older version
    assert find_checkpoint("auto", output, labels) == str(newer)
    assert "has no checksums" in caplog.text
    (older / "optimizer.pt").write_bytes(b"")
    shutil.rmtree(newer)
    assert find_checkpoint("auto", output, labels) is None
    assert "training starts from the beginning" in caplog.text


def test_a_damaged_best_checkpoint_is_not_loaded(make_trainer, caplog):
    steps = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 2,
             "save_total_limit": None}  # fmt: skip
    trainer = make_trainer(learning_rate=0.0, **steps)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name == "checkpoint-1"  # the second is no better
    flip_bit(best / "model.safetensors")
    with pytest.raises(MedtlError, match=r"best checkpoint.*model\.safetensors has changed"):
        trainer._load_best_model()
    again = make_trainer(learning_rate=0.0, **steps | {"max_steps": 3})
    again.train(resume_from_checkpoint=str(best.with_name("checkpoint-2")))
    assert "The best of the coming ones will be used" in caplog.text
    assert Path(again.state.best_model_checkpoint).name == "checkpoint-3"


def test_a_moved_run_keeps_its_best_checkpoint(make_trainer, tmp_path):
    steps = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1,
             "save_total_limit": None, "learning_rate": 0.0}  # fmt: skip
    trainer = make_trainer(max_steps=2, **steps)
    trainer.train()
    (tmp_path / "run").rename(tmp_path / "moved")
    again = make_trainer(max_steps=3, output_dir=str(tmp_path / "moved"), **steps)
    again.train(resume_from_checkpoint=str(tmp_path / "moved" / "checkpoint-2"))
    assert again.state.best_model_checkpoint == str(tmp_path / "moved" / "checkpoint-1")


def test_training_that_diverges_stops_with_step_rate_and_checkpoint(make_trainer, tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(learning_rate=1e30, warmup_steps=0, lr_scheduler_type="constant", max_steps=8)
    with pytest.raises(MedtlError, match=r"training loss is (nan|inf) at step 2 .* learning rate 1e\+30\. Start again"):
        trainer.train()
    assert signal.getsignal(signal.SIGTERM) == handler
    trainer = make_trainer(max_steps=1, eval_strategy="no", load_best_model_at_end=False, early_stopping_patience=0)
    with torch.no_grad():
        find_head(trainer.model).bias.fill_(float("nan"))
    trainer.divergence.check_loss = lambda *args: None
    with pytest.raises(MedtlError, match=r"weights that are not finite: vit"):
        trainer.train()
    trainer = make_trainer(max_steps=1, save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1)
    trainer.training_step = lambda *args: torch.zeros(())
    with torch.no_grad():
        find_head(trainer.model).bias.fill_(float("nan"))
    with pytest.raises(MedtlError, match="validation loss is nan at step 1 "):
        trainer.train()


def test_fp16_tolerates_a_few_steps_that_overflow():
    state = SimpleNamespace(global_step=3, epoch=1.0)
    check = DivergenceCheck(SimpleNamespace(fp16=True, bf16=False, output_dir="absent"))
    for _ in range(9):
        check.check_loss(torch.tensor(float("inf")), "training", state, 0.1)
    with pytest.raises(MedtlError, match="--mixed_precision no"):
        check.check_loss(torch.tensor(float("inf")), "training", state, 0.1)
