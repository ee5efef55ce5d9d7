"""Augmentation: determinism, masks, mirroring of some presets only; mixup and CutMix."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from hf_medtl import MedtlError, Recipe
from hf_medtl.data.augmentation import AUGMENTATIONS, get_augmentation, save_preview
from hf_medtl.training.mixing import mix_batch
from tests.support.commands import run_command

SETS = [name for name in AUGMENTATIONS if name != "none"]


def noise(height: int = 40, width: int = 30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def disc(size: int = 96) -> np.ndarray:
    """Return (size, size) with 1 in a disc off the centre."""
    y, x = np.mgrid[:size, :size]
    return ((y - size * 0.45) ** 2 + (x - size * 0.4) ** 2 < (size / 5) ** 2).astype(np.uint8)


class Augmented(Dataset):
    def __init__(self, name: str) -> None:
        self.augment = get_augmentation(name)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.augment(noise(), index))


@pytest.mark.parametrize("name", SETS)
def test_same_seed_gives_same_pixels_and_shape(name):
    augment, pixels = get_augmentation(name), noise()
    pixels.setflags(write=False)  # as memory-mapped images are
    first = [augment(pixels, seed) for seed in range(20)]
    assert {(out.shape, out.dtype) for out in first} == {((40, 30, 3), np.dtype(np.uint8))}
    assert all(np.array_equal(out, get_augmentation(name)(pixels, seed)) for seed, out in enumerate(first))
    assert len({out.tobytes() for out in first}) >= 15
    assert np.array_equal(pixels, noise())


@pytest.mark.parametrize("name", SETS)
def test_grey_image_of_one_channel_gives_same_result(name):
    augment, grey = get_augmentation(name), noise()[..., :1]
    for seed in range(60):
        assert np.array_equal(np.repeat(augment(grey, seed), 3, axis=2), augment(np.repeat(grey, 3, axis=2), seed))


@pytest.mark.slow
def test_other_processes_and_workers_augment_identically():
    code = (
        "import hashlib, numpy as np; from hf_medtl.data.augmentation import AUGMENTATIONS, get_augmentation\n"
        "pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)\n"
        "print(*[hashlib.sha256(get_augmentation(n)(pixels, 7).tobytes()).hexdigest() for n in AUGMENTATIONS[1:]])"
    )
    done = run_command(sys.executable, "-c", code)
    expected = [hashlib.sha256(get_augmentation(name)(noise(), 7).tobytes()).hexdigest() for name in SETS]
    assert done.stdout.split() == expected, done.stderr
    for name in ("chest", "randaugment"):
        alone = torch.cat(list(DataLoader(Augmented(name), batch_size=2)))
        assert torch.equal(alone, torch.cat(list(DataLoader(Augmented(name), batch_size=2, num_workers=2))))


@pytest.mark.parametrize("name", SETS)
def test_masks_are_transformed_and_keep_their_values(name):
    augment, mask = get_augmentation(name), disc()
    pixels = np.repeat(mask[..., None] * 160 + 40, 3, axis=2).astype(np.uint8)
    moved, overlaps = 0, []
    for seed in range(40):
        image, followed = augment(pixels, seed, mask)
        assert (followed.shape, followed.dtype) == (mask.shape, mask.dtype)
        assert set(np.unique(followed)) <= {0, 1}
        assert np.array_equal(image, augment(pixels, seed))  # a mask does not change the random numbers
        shown = image[..., 0] > (np.median(image[followed == 0]) + np.median(image[followed == 1])) / 2
        overlaps.append((shown & (followed == 1)).sum() / (shown | (followed == 1)).sum())
        moved += not np.array_equal(followed, mask)
    assert np.median(overlaps) > 0.97
    assert min(overlaps) > 0.8  # coarse dropout may lie in the disc
    assert moved > 10


@pytest.mark.slow
def test_brain_is_mirrored_and_chest_is_not():
    """A bright half must stay on its side in presets for chests, where the heart is on the left."""
    pixels = np.full((64, 64, 3), 60, np.uint8)
    pixels[:, 40:] = 200
    mirrored = {
        name: np.mean(
            [(out := get_augmentation(name)(pixels, s))[:, 32:].mean() < out[:, :32].mean() for s in range(200)]
        )
        for name in SETS
    }
    assert mirrored["chest"] == mirrored["light"] == mirrored["randaugment"] == 0
    assert 0.4 < mirrored["brain"] < 0.6


def test_transforms_are_sampled_independently():
    """TRAP: albumentations' set_random_seed gives all transforms the same seed, so they would always coincide."""
    pixels = np.full((32, 32, 3), 60, np.uint8)
    pixels[:, 20:] = 200
    outs = [get_augmentation("brain")(pixels, seed) for seed in range(300)]
    flipped = np.array([out[:, 16:].mean() < out[:, :16].mean() for out in outs])
    brighter = np.array([out.max() > 205 for out in outs])
    assert abs(np.corrcoef(flipped, brighter)[0, 1]) < 0.15


def test_rejects_unknown_names_and_invalid_numbers():
    assert get_augmentation("none") is None
    with pytest.raises(MedtlError, match=r"Unknown augmentation 'heavy'.*chest"):
        get_augmentation("heavy")
    with pytest.raises(MedtlError, match="magnitude from 0 to 30"):
        get_augmentation("randaugment", magnitude=31)
    with pytest.raises(MedtlError, match="at least 1 operation"):
        get_augmentation("randaugment", operations=0)


def test_randaugment_effect_grows_with_magnitude():
    pixels = np.repeat(disc()[..., None] * 120 + 60, 3, axis=2).astype(np.uint8)

    def change(operations: int, magnitude: int) -> float:
        augment = get_augmentation("randaugment", operations, magnitude)
        return float(np.mean([np.abs(augment(pixels, s).astype(int) - pixels).mean() for s in range(60)]))

    assert change(1, 5) < change(1, 25) < change(4, 25)


def test_preview_writes_figure(tmp_path):
    save_preview([noise(), noise()], ["NORMAL", "$x_1"], "chest", tmp_path / "a.png", samples=3)
    save_preview([noise()], ["NORMAL"], "none", tmp_path / "b.png")
    save_preview([noise(), noise()], ["NORMAL", "$x_1"], "chest", tmp_path / "c.png", samples=3)
    assert Image.open(tmp_path / "a.png").width > 2 * Image.open(tmp_path / "b.png").width
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "c.png").read_bytes()
    with pytest.raises(MedtlError, match="no images"):
        save_preview([], [], "chest", tmp_path / "d.png")


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_soft_labels_equal_mixing_proportions(alphas):
    shades = torch.arange(4.0)
    pixels, labels = shades.view(4, 1, 1, 1).expand(4, 3, 20, 30).clone(), torch.eye(4)
    methods = set()
    for seed in range(30):
        mixed, soft = mix_batch(pixels, labels, *alphas, np.random.default_rng(seed))
        assert torch.allclose(soft.sum(1), torch.ones(4))
        assert torch.allclose(mixed.mean((1, 2, 3)), soft @ shades, atol=1e-4)
        cut = set(mixed.unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}
        methods.add("cut" if cut else "blend")
    assert methods == {method for method, alpha in zip(("blend", "cut"), alphas, strict=True) if alpha}
    assert torch.equal(pixels[:, 0, 0, 0], shades)  # the input is unchanged


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup_loss_is_cross_entropy_with_soft_labels(make_trainer, smoothing):
    trainer = make_trainer(mixup=0.4, cutmix=1.0, label_smoothing_factor=smoothing, seed=3)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    pixels = (batch["pixel_values"].float() - trainer.mean) / trainer.std
    expected, soft = mix_batch(pixels, torch.eye(2)[batch["labels"]], 0.4, 1.0, np.random.default_rng([3, 0, 0, 0]))
    inputs = trainer._prepare_inputs(dict(batch))
    assert torch.allclose(inputs["pixel_values"], expected, atol=1e-5)
    assert torch.allclose(inputs["labels"], soft)
    trainer.model.eval()  # no dropout
    with torch.no_grad():
        logits = trainer.model(pixel_values=expected).logits
        loss = trainer.compute_loss(trainer.model, dict(inputs), num_items_in_batch=torch.tensor(16))
    target = soft * (1 - smoothing) + smoothing / 2
    assert torch.allclose(loss, -(target * logits.log_softmax(1)).sum() / 16, atol=1e-5)
    again = make_trainer(mixup=0.4, cutmix=1.0, label_smoothing_factor=smoothing, seed=3)
    again.model.train()
    draws = [again._prepare_inputs(dict(batch))["labels"] for _ in range(2)]
    assert torch.equal(draws[0], soft)
    assert not torch.equal(draws[1], soft)  # the next batch of the same optimizer step


def test_evaluation_ignores_mixup(make_trainer):
    plain, mixed = (make_trainer(mixup=a, cutmix=a, eval_strategy="epoch").evaluate() for a in (0.0, 1.0))
    assert mixed["eval_loss"] == pytest.approx(plain["eval_loss"], abs=1e-6)
    assert mixed["eval_roc_auc"] == plain["eval_roc_auc"]


def test_resumed_run_mixes_identically(make_trainer):
    steps = {"mixup": 0.2, "cutmix": 1.0, "max_steps": 4, "gradient_accumulation_steps": 2, "save_strategy": "steps",
             "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "per_device_train_batch_size": 4,
             "save_total_limit": None, "load_best_model_at_end": False, "early_stopping_patience": 0}  # fmt: skip
    trainer = make_trainer(**steps)
    trainer.train()
    expected = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    again = make_trainer(**steps)
    again.train(resume_from_checkpoint=str(Path(str(trainer.args.output_dir)) / "checkpoint-2"))
    resumed = again.model.state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in expected.items())
    assert trainer.model.config.problem_type in (None, "single_label_classification")
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert all(0.2 < loss < 2 for loss in losses)  # a mean, whatever the accumulation


def test_rejects_negative_mixup(tmp_path):
    for option in ("mixup", "cutmix"):
        with pytest.raises(MedtlError, match=f"--{option} is the alpha of Beta"):
            Recipe(output_dir=str(tmp_path), use_cpu=True, **{option: -0.1})
