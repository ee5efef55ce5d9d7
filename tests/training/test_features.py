"""Feature cache: training on cached features equals training a frozen body on images."""

import logging

import pytest
import torch
from transformers import AutoModelForImageClassification

from hf_medtl import MedtlError, Recipe, run
from hf_medtl.models.heads import find_head
from hf_medtl.models.strategies import set_trainable
from hf_medtl.training.features import add_features_input, dropout_before_head
from tests.support.commands import options
from tests.support.resumed_training import copy_weights, train_and_resume

FROZEN = {"strategy": "feature_extraction", "num_train_epochs": 3, "learning_rate": 0.05, "early_stopping_patience": 0}


def add_dropout(model: torch.nn.Module, rate: float = 0.5) -> None:
    """Add dropout between body and head, as a recipe may configure it."""
    if hasattr(model, "timm_model"):
        model.timm_model.drop_rate = rate
    else:
        model.classifier = torch.nn.Sequential(torch.nn.Dropout(rate), model.classifier)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit", "dinov2", "deit", "swin", "convnext", "timm", "cnn"])
@pytest.mark.parametrize("augmentation", ["none", "brain"])
def test_head_matches_training_without_cache(family, augmentation, make_trainer):
    heads, losses, calls = [], [], []
    for cached in (True, False):
        trainer = make_trainer(family, **FROZEN, cache_features=cached, augmentation=augmentation,
                             **({"feature_views": 3} if augmentation != "none" else {}))  # fmt: skip
        body = next(m for m in trainer.model.modules() if isinstance(m, torch.nn.Conv2d))
        body.register_forward_hook(lambda *_: calls.append(cached))  # noqa: B023 - called in the same iteration
        trainer.train()
        heads.append(copy_weights(trainer))
        losses.append([row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row])
        assert "forward" not in vars(trainer.model)
        assert min(losses[-1]) == pytest.approx(
            trainer.evaluate()["eval_loss"], abs=1e-5
        )  # the best weights, evaluated on images
    for name, tensor in heads[0].items():
        assert torch.allclose(tensor, heads[1][name], atol=1e-5), name
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert calls.count(True) < calls.count(False)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit", "timm"])
def test_dropout_before_head_stays_active(family, make_trainer):
    heads = []
    for cached in (True, False):
        trainer = make_trainer(
            family, **FROZEN, cache_features=cached, augmentation="none", load_best_model_at_end=False
        )
        add_dropout(trainer.model)
        trainer.train()
        heads.append(find_head(trainer.model).weight.detach().clone())
    assert torch.allclose(heads[0], heads[1], atol=1e-5)


@pytest.mark.parametrize("family", ["vit", "timm"])
def test_finds_dropout_rate(family, make_trainer):
    model = make_trainer(family).model
    pixels = torch.randn(2, 3, 64, 64) if family == "timm" else torch.randn(2, 3, 32, 32)
    set_trainable(model, 0, None)
    assert dropout_before_head(model, pixels) == 0
    add_dropout(model, 0.3)
    set_trainable(model, 0, None)
    assert dropout_before_head(model, pixels) == 0.3


def test_no_cache_if_logits_change_after_the_head(make_trainer, caplog):
    trainer = make_trainer("vit", **(FROZEN | {"num_train_epochs": 1}))
    usual = trainer.model.forward

    def odd(**inputs):
        outputs = usual(**inputs)
        outputs.logits = outputs.logits * 2
        return outputs

    trainer.model.forward = odd
    with caplog.at_level(logging.WARNING, "hf_medtl"):
        trainer.train()
    assert "every epoch runs the body" in caplog.text


def test_full_model_accepts_features(make_trainer):
    model = make_trainer("vit").model.eval()
    pixels, inputs = torch.randn(2, 3, 32, 32), []
    hook = find_head(model).register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    logits = model(pixel_values=pixels).logits
    hook.remove()
    undo = add_features_input(model, 0.5)
    assert torch.equal(model(features=inputs[0]).logits, logits)
    assert torch.equal(model(pixel_values=pixels).logits, logits)
    undo()
    assert model.forward.__func__ is type(model).forward


@pytest.mark.slow
def test_epochs_cycle_through_views(make_trainer):
    trainer = make_trainer("vit", **FROZEN, feature_views=2, augmentation="brain", dataloader_num_workers=2)
    trainer.train()
    data = trainer.train_dataset
    assert data.values.shape == (2, len(data), 32)
    assert not torch.equal(data.values[0], data.values[1])
    data.in_use.fill_(True)
    for epoch, view in ((0, 0), (1, 1), (2, 0)):
        data.epoch.fill_(epoch)
        assert torch.equal(data[3]["features"], data.values[view, 3])


@pytest.mark.slow
def test_lp_ft_uses_features_then_images(make_trainer):
    heads = []
    for cached in (True, False):
        trainer = make_trainer("convnext", strategy="lp_ft", probe_epochs=1, num_train_epochs=2, cache_features=cached,
                             augmentation="none", learning_rate=0.01, early_stopping_patience=0,
                             load_best_model_at_end=False)  # fmt: skip
        trainer.train()
        heads.append(copy_weights(trainer))
    for name, tensor in heads[0].items():
        assert torch.allclose(tensor, heads[1][name], atol=1e-4), name


def test_no_cache_with_mixup(make_trainer):
    assert make_trainer("vit", **FROZEN).sets
    assert not make_trainer("vit", **FROZEN, mixup=0.2).sets


@pytest.mark.slow
def test_resumes_exactly_with_cached_features(make_trainer):
    through, again = train_and_resume(make_trainer, "timm", 5, strategy="feature_extraction")
    weights, resumed_weights = copy_weights(through), copy_weights(again)
    assert all(torch.equal(weights[name], resumed_weights[name]) for name in weights)


@pytest.mark.slow
def test_saved_model_is_the_full_model(phantoms, tiny_checkpoint, tmp_path):
    saved = []
    for cached in (True, False):
        overrides = {**FROZEN, "cache_features": cached, "augmentation": "none"}
        folder = run(Recipe(**options(phantoms, tiny_checkpoint("timm"), tmp_path / str(cached), **overrides)))
        saved.append(AutoModelForImageClassification.from_pretrained(folder).eval())
    pixels = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        a, b = (model(pixel_values=pixels).logits for model in saved)
    assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["timm"])
def test_feature_cache_benchmark_runs(family, process_pool, tiny_checkpoint):
    arguments = ("--epochs", 1, "--model_name_or_path", tiny_checkpoint(family))
    process = process_pool.run_script("benchmarks/feature_cache.py", *arguments)
    assert process.returncode == 0, process.stderr[-3000:]
    rows = [line.split("|") for line in process.stdout.splitlines() if line.startswith("| tiny")]
    assert [row[3].strip() for row in rows] == ["body in each epoch", "features computed once"]
    assert float(rows[1][7]) < 1e-4


def test_rejects_feature_views_without_frozen_body(phantoms, tiny_checkpoint, tmp_path):
    with pytest.raises(MedtlError, match="feature_extraction or lp_ft"):
        Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "run", feature_views=2))
