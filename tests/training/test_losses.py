"""Classification losses, optimizers and schedules: values, and exact resuming."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import cross_entropy, one_hot
from transformers import AutoModelForImageClassification

from hf_medtl import MedtlError, Recipe
from hf_medtl.tasks import TASKS
from hf_medtl.training.losses import ClassificationLoss, class_weights
from tests.support.commands import options
from tests.support.resumed_training import copy_weights, same_weights, train_and_resume

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-1.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
TARGETS = torch.tensor([0, 2, 0, 1])
NAMES = ("a", "b", "c")


def test_class_weights_match_scikit_learn_and_cui_et_al():
    labels = np.repeat([0, 1, 2], [10, 200, 3000])
    counts = np.bincount(labels).tolist()
    balanced = class_weights("balanced", counts, NAMES)
    assert np.allclose(balanced, compute_class_weight("balanced", classes=np.arange(3), y=labels))
    effective = class_weights("effective", counts, NAMES, beta=0.999)
    assert np.allclose(effective[0] / effective[1], (1 - 0.999**200) / (1 - 0.999**10))  # Cui et al. 2019, equation 3
    assert np.allclose((effective * counts).sum(), sum(counts))
    assert np.allclose(class_weights("effective", counts, NAMES, beta=0.0), 1)
    assert np.allclose(class_weights("effective", counts, NAMES, beta=1 - 1e-9), balanced, rtol=1e-4)
    assert class_weights("none", [0, 1, 2], NAMES).tolist() == [1, 1, 1]


def test_cross_entropy_matches_torch():
    assert torch.allclose(ClassificationLoss()(LOGITS, TARGETS), cross_entropy(LOGITS, TARGETS))
    smooth = ClassificationLoss(smoothing=0.1)(LOGITS, TARGETS)
    assert torch.allclose(smooth, cross_entropy(LOGITS, TARGETS, label_smoothing=0.1))
    weights = torch.tensor([0.5, 1.0, 3.0])
    expected = -(LOGITS.log_softmax(1)[range(4), TARGETS] * weights[TARGETS]).sum() / 4
    assert torch.allclose(ClassificationLoss(weights)(LOGITS, TARGETS), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_loss_matches_formula(smoothing):
    p = LOGITS.softmax(1)[range(4), TARGETS]
    expected = (-((1 - p) ** 2) * p.log()).mean()
    assert torch.allclose(ClassificationLoss(gamma=2.0)(LOGITS, TARGETS), expected)
    # With gamma near 0 it equals the cross entropy, weights and smoothing included.
    weights = torch.tensor([0.5, 1.0, 3.0])
    almost = ClassificationLoss(weights, 1e-7, smoothing)(LOGITS, TARGETS)
    assert torch.allclose(almost, ClassificationLoss(weights, 0.0, smoothing)(LOGITS, TARGETS), atol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 3.0])])
def test_soft_labels_match_hard_ones_and_parts_of_a_batch_add_up(gamma, weights):
    loss = ClassificationLoss(weights, gamma, 0.05)
    hard = loss(LOGITS, TARGETS)
    assert torch.allclose(loss(LOGITS, one_hot(TARGETS, 3).float()), hard)
    assert torch.allclose(loss(LOGITS[:1], TARGETS[:1], 4) + loss(LOGITS[1:], TARGETS[1:], 4), hard)


def test_rejects_invalid_options(phantoms, tiny_checkpoint, tmp_path):
    with pytest.raises(MedtlError, match="The training split has no images of b"):
        class_weights("balanced", [3, 0, 2], NAMES)
    for overrides, message in (
        ({"optim": "adamm"}, "Did you mean 'adam'"),
        ({"loss": "hinge"}, "cross_entropy, focal"),
        ({"class_weights": "heavy"}, "must be none, balanced or effective"),
        ({"effective_beta": 1.0}, "below 1"),
        ({"focal_gamma": -1.0}, "at least 0"),
        ({"ema_decay": 1.0}, "below 1"),
        ({"label_smoothing_factor": 1.5}, "below 1"),
        ({"lr_step_epochs": 9.0}, "below 2"),
        ({"lr_step_factor": 0.0}, "above 0"),
        ({"validation_fraction": 1.0}, "--validation_fraction must be at least 0 and below 1, but is 1"),
        ({"test_fraction": -0.1}, "--test_fraction must be at least 0 and below 1, but is -0.1"),
        ({"folds": 1}, "--folds must be at least 2"),
        ({"folds": 5, "fold": 5}, "--fold must be from 0 to 4 with --folds 5, but is 5"),
    ):
        with pytest.raises(MedtlError, match=message):
            Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "run", **overrides))


def test_flags_reach_the_recipe():
    flags = "--optim adam --no_cache_features --strategy lp_ft --probe_epochs 2 --class_weights effective"
    recipe = Recipe.from_cli({"use_cpu": True}, flags.split())
    assert (recipe.plain_adam, recipe.cache_features, recipe.plan.probe_epochs) == (True, False, 2)
    again = yaml.safe_load(recipe.to_yaml())
    assert again["optim"] == "adam"
    assert again["class_weights"] == "effective"


def test_recipe_options_reach_the_loss(phantoms, tiny_checkpoint, tmp_path):
    overrides = {"class_weights": "balanced", "loss": "focal", "label_smoothing_factor": 0.1}
    recipe = Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path, **overrides))
    loss = TASKS["classification"].loss(recipe, ("a", "b"), [0] * 3 + [1])
    assert np.allclose(loss.weights, [4 / 6, 4 / 2])  # counted in the targets of the training split
    assert (loss.gamma, loss.smoothing) == (2.0, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit", "timm"])
@pytest.mark.parametrize("overrides", [{}, {"class_weights": "balanced", "loss": "focal", "mixup": 0.2}])
def test_accumulated_batches_match_one_batch(family, overrides, make_trainer):
    """The loss is divided by the number of images of the whole optimizer step."""
    norms = []
    for size, times in ((8, 1), (2, 4)):
        trainer = make_trainer(family, optim="sgd", learning_rate=1.0, max_steps=1, save_strategy="no", logging_steps=1,
                             eval_strategy="no", load_best_model_at_end=False, early_stopping_patience=0,
                             per_device_train_batch_size=size, gradient_accumulation_steps=times, max_grad_norm=1e9,
                             lr_scheduler_type="constant", warmup_steps=0, **overrides)  # fmt: skip
        trainer.model.eval()
        for module in trainer.model.modules():  # dropout and batch norm depend on the batch size
            module.train = lambda mode=True, module=module: module
        if overrides:  # mixup would pair other images
            trainer.args.mixup = 0.0
        trainer.train()
        norms.append(next(row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row))
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_gradients_are_clipped(make_trainer):
    trainer = make_trainer(
        optim="sgd",
        learning_rate=1.0,
        max_grad_norm=0.01,
        max_steps=1,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        save_strategy="no",
        eval_strategy="no",
        load_best_model_at_end=False,
        early_stopping_patience=0,
    )
    before = copy_weights(trainer)
    trainer.train()
    moved = sum(((trainer.model.state_dict()[name] - t) ** 2).sum() for name, t in before.items()) ** 0.5
    assert moved == pytest.approx(0.01, rel=1e-3)


OPTIMIZERS = [
    {"optim": "adam"},
    {"optim": "sgd", "optim_args": "momentum=0.9,nesterov=true", "lr_scheduler_type": "linear"},
    {"optim": "rmsprop", "lr_step_epochs": 0.5},
    {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0, "factor": 0.5}},
    {"ema_decay": 0.9, "lr_scheduler_type": "constant_with_warmup"},
]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", OPTIMIZERS, ids=lambda overrides: "-".join(map(str, overrides.values()))[:30])
def test_optimizers_and_schedules_run_and_resume_exactly(overrides, make_trainer):
    through, again = train_and_resume(make_trainer, "timm", 5, **overrides)
    assert same_weights(through, again)
    optimizer_class = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop}
    optimizer = getattr(through.optimizer, "optimizer", through.optimizer)
    assert type(optimizer) is optimizer_class.get(str(overrides.get("optim")), torch.optim.AdamW)
    assert again.state.log_history[-2]["eval_loss"] == through.state.log_history[-2]["eval_loss"]


def test_step_schedule_lowers_learning_rate(make_trainer):
    trainer = make_trainer(num_train_epochs=4, lr_step_epochs=2, lr_step_factor=0.5, learning_rate=0.1, warmup_steps=0)
    trainer.create_optimizer()
    schedule = trainer.create_scheduler(8)
    rates = []
    for _ in range(8):
        rates.append(schedule.get_last_lr()[0])
        trainer.optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.1] * 4 + [0.05] * 4)


@pytest.mark.slow
def test_ema_weights_are_evaluated_and_saved(make_trainer):
    overrides = {"ema_decay": 0.5, "max_steps": 3, "save_strategy": "steps", "eval_strategy": "steps", "save_steps": 1,
            "eval_steps": 1, "learning_rate": 0.01, "save_total_limit": None}  # fmt: skip
    trainer = make_trainer("timm", **overrides)
    start = copy.deepcopy(copy_weights(trainer))
    trainer.train()
    folders = [Path(trainer.args.output_dir) / f"checkpoint-{step}" for step in (1, 2, 3)]
    average = {name: t.clone() for name, t in start.items()}
    for step, folder in enumerate(folders, 1):
        live = load_file(folder / "training_weights.safetensors")
        decay = min(0.5, (1 + step) / (10 + step))
        saved = AutoModelForImageClassification.from_pretrained(folder).state_dict()
        for name, tensor in average.items():
            average[name] = tensor.lerp(live[name], 1 - decay) if tensor.is_floating_point() else live[name]
            assert torch.allclose(saved[name], average[name], atol=1e-6), name
    best = AutoModelForImageClassification.from_pretrained(trainer.state.best_model_checkpoint).state_dict()
    assert all(torch.equal(best[name], t) for name, t in trainer.model.state_dict().items())
    again = make_trainer("timm", **overrides)
    again.model.load_state_dict(saved)
    row = next(r for r in trainer.state.log_history if r.get("step") == 3 and "eval_loss" in r)
    assert again.evaluate()["eval_loss"] == pytest.approx(row["eval_loss"], abs=1e-6)
