"""Segmentation losses: formulas, agreement with segmentation_models_pytorch, empty masks, accumulated batches."""

import copy
import pickle

import numpy as np
import pytest
import torch
from segmentation_models_pytorch import losses as smp
from torch.nn.functional import cross_entropy

from hf_medtl import MedtlError
from hf_medtl.evaluation.masks import IGNORE_INDEX
from hf_medtl.training.mask_losses import LOSSES, MaskLoss, pixel_class_weights

torch.manual_seed(0)
LOGITS = torch.randn(4, 3, 8, 10)
LABELS = torch.randint(0, 3, (4, 8, 10))
PARTLY = LABELS.clone()
PARTLY[:, :3] = IGNORE_INDEX  # equally many per image, so that means over images and over pixels agree


def tversky_loss(logits: torch.Tensor, labels: torch.Tensor, alpha: float, beta: float, smooth: float) -> float:
    """Compute 1 - Tversky index with loops over images, classes and pixels."""
    losses = []
    for scores, truth in zip(logits.softmax(1), labels, strict=True):
        for k in range(1, logits.shape[1]):
            tp = fp = fn = 0.0
            for p, y in zip(scores[k].flatten().tolist(), truth.flatten().tolist(), strict=True):
                if y != IGNORE_INDEX:
                    tp, fp, fn = tp + p * (y == k), fp + p * (y != k), fn + (1 - p) * (y == k)
            losses.append(1 - (tp + smooth) / (tp + alpha * fp + beta * fn + smooth))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("labels", [LABELS, PARTLY])
def test_losses_match_formulas(labels):
    entropy = cross_entropy(LOGITS, labels, ignore_index=IGNORE_INDEX)
    dice = tversky_loss(LOGITS, labels, 0.5, 0.5, 1.0)
    assert torch.allclose(MaskLoss("cross_entropy")(LOGITS, labels), entropy)
    assert MaskLoss("dice")(LOGITS, labels).item() == pytest.approx(dice, abs=1e-6)
    assert MaskLoss("bce_dice")(LOGITS, labels).item() == pytest.approx(entropy.item() + dice, abs=1e-6)
    assert MaskLoss("tversky", alpha=0.2, beta=0.9, smooth=3.0)(LOGITS, labels).item() == pytest.approx(
        tversky_loss(LOGITS, labels, 0.2, 0.9, 3.0), abs=1e-6
    )
    assert torch.allclose(MaskLoss("tversky", alpha=0.5, beta=0.5)(LOGITS, labels), MaskLoss("dice")(LOGITS, labels))
    valid = labels != IGNORE_INDEX
    p = LOGITS.softmax(1).movedim(1, -1)[valid].gather(1, labels[valid][:, None])
    assert torch.allclose(MaskLoss("focal", gamma=1.5)(LOGITS, labels), (-((1 - p) ** 1.5) * p.log()).mean())
    assert torch.allclose(MaskLoss("focal", gamma=0.0)(LOGITS, labels), entropy)


@pytest.mark.parametrize("labels", [LABELS, PARTLY])
def test_overlap_of_one_image_matches_smp(labels):
    common = {"mode": "multiclass", "classes": [1, 2], "smooth": 1.0, "ignore_index": IGNORE_INDEX}
    dice, tversky = smp.DiceLoss(**common), smp.TverskyLoss(**common, alpha=0.3, beta=0.7)
    focal = smp.TverskyLoss(**common, alpha=0.3, beta=0.7, gamma=0.75)
    for loss, reference in (
        (MaskLoss("dice"), dice),
        (MaskLoss("tversky"), tversky),
        (MaskLoss("focal_tversky"), lambda logits, masks: by_class(focal, logits, masks)),
    ):
        per_image = torch.stack([reference(LOGITS[i : i + 1], labels[i : i + 1]) for i in range(4)])
        assert torch.allclose(loss(LOGITS, labels), per_image.mean(), atol=1e-6)


def by_class(loss: smp.TverskyLoss, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean of the loss of each foreground class: smp takes the power after the mean over classes."""
    values = []
    for k in (1, 2):
        loss.classes = torch.tensor([k])
        values.append(loss(logits, labels))
    return torch.stack(values).mean()


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_class_weights_multiply_the_loss_of_their_pixels(name):
    weights = torch.tensor([0.5, 2.0, 7.0])
    valid = PARTLY != IGNORE_INDEX
    log_p = LOGITS.log_softmax(1).movedim(1, -1)[valid].gather(1, PARTLY[valid][:, None])[:, 0]
    terms = -log_p * (1 - log_p.exp()) ** (2.0 if name == "focal" else 0.0)
    loss = MaskLoss(name, weights=weights)
    assert torch.allclose(loss(LOGITS, PARTLY), (terms * weights[PARTLY[valid]]).mean())
    mixed = MaskLoss("bce_dice", weights=weights)(LOGITS, PARTLY)
    assert name == "focal" or torch.allclose(mixed, loss(LOGITS, PARTLY) + MaskLoss("dice")(LOGITS, PARTLY))
    assert loss(LOGITS, torch.full_like(LABELS, IGNORE_INDEX)) == 0
    parts = [loss(LOGITS[a:b], PARTLY[a:b], PARTLY.numel()) for a, b in ((0, 3), (3, 4))]
    assert torch.allclose(sum(parts), loss(LOGITS, PARTLY), atol=1e-6)


def test_class_weights_are_inverse_to_pixels_up_to_a_cap():
    labels = ("background", "lung", "nodule")
    balanced = pixel_class_weights([800, 150, 50], labels)
    assert balanced == pytest.approx(1000 / 3 / np.array([800, 150, 50]))  # as scikit-learn's "balanced"
    rare = pixel_class_weights([10**6, 10**5, 10], labels)
    assert rare[1] / rare[0] == pytest.approx(10)
    assert rare[2] / rare[0] == pytest.approx(50)
    assert rare @ [10**6, 10**5, 10] / (10**6 + 10**5 + 10) == pytest.approx(1)
    with pytest.raises(MedtlError, match="no pixel of lung, nodule, so --class_weights balanced is undefined"):
        pixel_class_weights([10, 0, 0], labels)


def test_smp_losses_differ_for_batches():
    """If this fails, segmentation_models_pytorch has changed: review the docstring of MaskLoss."""
    healthy = torch.zeros_like(LABELS)
    common = {"mode": "multiclass", "smooth": 1.0, "ignore_index": IGNORE_INDEX}
    assert smp.DiceLoss(**common, classes=[1])(LOGITS, healthy) == 0  # for any prediction
    assert MaskLoss("dice")(LOGITS, healthy) > 0.5
    batch_loss = smp.DiceLoss(**common)(LOGITS, LABELS)
    image_losses = torch.stack([smp.DiceLoss(**common)(LOGITS[i : i + 1], LABELS[i : i + 1]) for i in range(4)])
    assert not torch.allclose(batch_loss, image_losses.mean(), atol=1e-5)
    nothing = torch.full_like(LABELS, IGNORE_INDEX)
    assert smp.FocalLoss("multiclass", ignore_index=IGNORE_INDEX)(LOGITS, nothing).isnan()
    assert MaskLoss("focal")(LOGITS, nothing) == 0
    assert not torch.allclose(smp.FocalLoss("multiclass", gamma=0.0)(LOGITS, LABELS), cross_entropy(LOGITS, LABELS))
    soft = smp.SoftCrossEntropyLoss(smooth_factor=0.0, ignore_index=IGNORE_INDEX)(LOGITS, PARTLY)
    assert torch.allclose(soft, cross_entropy(LOGITS, PARTLY, ignore_index=IGNORE_INDEX) * 5 / 8)


@pytest.mark.parametrize("name", LOSSES)
def test_parts_of_a_batch_add_up(name):
    loss = MaskLoss(name)
    labels = LABELS.clone()
    labels[0] = 0  # different images: without foreground, and partly ignored
    labels[1, :5] = IGNORE_INDEX
    number = labels.ne(-100).sum()  # as Trainer counts
    batch_loss = loss(LOGITS, labels)
    assert torch.allclose(loss(LOGITS, labels, number), batch_loss)
    part_losses = [loss(LOGITS[a:b], labels[a:b], number) for a, b in ((0, 1), (1, 4))]
    assert torch.allclose(sum(part_losses), batch_loss, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_only_pixels_that_are_not_ignored_get_gradients(name):
    labels = torch.zeros(2, 12, 12, dtype=torch.int64)
    labels[:, 3:8, 3:8] = 1
    labels[:, :2] = IGNORE_INDEX
    logits = torch.zeros(2, 2, 12, 12, requires_grad=True)
    loss = MaskLoss(name)
    first = loss(logits, labels)
    first.backward()
    assert logits.grad is not None
    assert (logits.grad[:, :, :2] == 0).all()
    assert (logits.grad[:, 1, 3:8, 3:8] < 0).all()
    assert (logits.grad[:, 1, 9:] > 0).all()
    right = torch.nn.functional.one_hot(labels.clamp(max=1), 2).movedim(-1, 1) * 40.0 - 20
    assert loss(right, labels) < 1e-4 < first
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert again(logits, labels) == first


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("value", [0, IGNORE_INDEX])
def test_loss_of_images_without_foreground(name, value):
    """Loss and gradient are finite even for extreme logits; false lesions add loss, ignored pixels do not."""
    labels = torch.full((2, 6, 6), value)
    for size in (1.0, 1e4):
        logits = (torch.randn(2, 2, 6, 6) * size).requires_grad_()
        loss = MaskLoss(name, gamma=0.5)(logits, labels)
        loss.backward()
        assert loss.isfinite()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
        if value == IGNORE_INDEX:
            assert loss == 0
            assert (logits.grad == 0).all()
    quiet, loud = (torch.stack([torch.zeros(2, 6, 6), torch.full((2, 6, 6), x)], dim=1) for x in (-9.0, 9.0))
    if value == 0:
        assert MaskLoss(name)(quiet, labels) < 0.01 < 0.5 < MaskLoss(name)(loud, labels)


def test_half_precision_loses_no_pixels():
    logits, labels = torch.randn(1, 2, 256, 256), torch.randint(0, 2, (1, 256, 256))
    half = MaskLoss("bce_dice")(logits.bfloat16(), labels)
    assert half.dtype == torch.float32
    assert torch.allclose(half, MaskLoss("bce_dice")(logits, labels), atol=2e-3)


def test_rejects_invalid_parameters():
    for values, message in (
        (
            {"name": "bce"},
            "Unknown segmentation loss 'bce'. Available: cross_entropy, dice, bce_dice, focal, tversky, focal_tversky",
        ),
        ({"gamma": -1.0}, "gamma -1.0"),
        ({"alpha": 0.0, "beta": 0.0}, "not both 0"),
        ({"smooth": 0.0}, "smooth above 0"),
    ):
        with pytest.raises(MedtlError, match=message):
            MaskLoss(**values)
    for logits, labels in ((LOGITS[:, :1], LABELS), (LOGITS, LABELS[:, :4]), (LOGITS, LABELS[:2])):
        with pytest.raises(ValueError, match="expected logits"):
            MaskLoss()(logits, labels)
