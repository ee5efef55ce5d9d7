"""Sizes of training images by epoch."""

import pytest
import torch

from hf_medtl import MedtlError
from hf_medtl.models.build import build_classifier
from hf_medtl.training.image_sizes import ImageSizes

LABELS = ("healthy", "ill")


@pytest.mark.parametrize(
    ("value", "last", "sizes"),
    [
        (None, None, [None] * 4),
        (224, 224, [None] * 4),
        ("224", 224, [None] * 4),
        ("96:1, 128:2,224", 224, [96, 128, 128, None]),
    ],
)
def test_sizes_by_epoch(value, last, sizes):
    parsed = ImageSizes.parse(value, 10)
    assert parsed.last == last
    assert [parsed.at(epoch) for epoch in range(4)] == sizes


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("128:5", "must be 1 to 8192 pixels, or sizes with their epochs"),
        ("9000", "must be 1 to 8192 pixels"),
        (0, "must be 1 to 8192 pixels"),
        ("large", "must be 1 to 8192 pixels"),
        ("224:2,128", "must grow"),
        ("128:0,224", "must grow"),
        ("128:10,224", r"leaves no epoch for 224 pixels: training has 10 epochs"),
    ],
)
def test_other_values_are_refused(value, sentence):
    with pytest.raises(MedtlError, match=sentence):
        ImageSizes.parse(value, 10)


@pytest.mark.parametrize("family", ["vit", "dinov2", "swin", "convnext", "timm"])
def test_smaller_images_are_checked_before_training(tiny_checkpoint, family):
    model, _ = build_classifier(str(tiny_checkpoint(family)), LABELS, image_size=64)
    ImageSizes(64, ((32, 1), (48, 2))).check(model)
    if family in ("vit", "swin"):
        with pytest.raises(MedtlError, match="The nearest is"):
            ImageSizes(64, ((36, 1),)).check(model)


def test_training_sees_smaller_images_first_and_saves_the_last_size(make_trainer):
    trainer, seen = make_trainer("vit", image_size="32:1,48", num_train_epochs=2), []
    forward = trainer.model.forward

    def record(*args, **kwargs):
        seen.append((trainer.model.training, kwargs["pixel_values"].shape[-1], int(trainer.state.epoch or 0)))
        return forward(*args, **kwargs)

    trainer.model.forward = record
    trainer.train()
    assert {size for training, size, epoch in seen if training and epoch == 0} == {32}
    assert {size for training, size, epoch in seen if training and epoch == 1} == {48}
    assert {size for training, size, _ in seen if not training} == {48}
    assert trainer.model.config.image_size == 48
    assert trainer.model.vit.embeddings.position_embeddings.shape[1] == 37
    assert torch.isfinite(trainer.model.vit.embeddings.position_embeddings).all()
