"""Fine-tuning strategies: frozen parameters, learning rates, merged adapters and exact resuming."""

import logging
from pathlib import Path

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import AutoModelForImageClassification, TimmWrapperConfig, TimmWrapperForImageClassification

from hf_medtl import MedtlError, Recipe, run
from hf_medtl.models.build import build_classifier
from hf_medtl.models.heads import find_head
from hf_medtl.models.strategies import Strategy, add_lora, count_blocks, head_names, parameter_depths, remove_lora
from tests.support.commands import flags, options
from tests.support.resumed_training import same_weights, train_and_resume

FAMILIES = ("vit", "dinov2", "deit", "swin", "convnext", "timm", "cnn")
BLOCKS = {"vit": 2, "dinov2": 2, "deit": 2, "swin": 2, "convnext": 4, "timm": 4, "cnn": 2}
FAST = {"num_train_epochs": 1, "learning_rate": 0.01, "save_strategy": "no", "eval_strategy": "no", "warmup_steps": 0,
        "load_best_model_at_end": False, "early_stopping_patience": 0}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_finds_blocks_in_order(family, tiny_checkpoint):
    model, _ = build_classifier(str(tiny_checkpoint(family)), ("a", "b"))
    depths = parameter_depths(model)
    names = [name for name, _ in model.named_parameters()]
    assert set(depths) == set(names)
    assert count_blocks(depths) == BLOCKS[family]
    assert {depths[name] for name in head_names(model)} == {BLOCKS[family] + 1}
    first_depth = 1 if family == "cnn" else 0  # it has no parameters before its blocks
    assert set(depths.values()) == set(range(first_depth, BLOCKS[family] + 2))
    first = {"convnext": "stages.0", "timm": "layer1", "swin": "layers.0"}.get(family, "0.")
    assert all(first in name for name, depth in depths.items() if depth == 1)


@pytest.mark.parametrize(
    ("name", "blocks", "last"),
    [("vgg16", 5, "features.24"), ("resnet50", 4, "layer4"), ("densenet121", 4, "features.denseblock4"),
     ("efficientnet_b0", 7, "blocks.6"), ("vit_tiny_r_s16_p8_224", 12, "blocks.11")],
)  # fmt: skip
def test_finds_blocks_of_timm_models(name, blocks, last):
    with torch.device("meta"):
        model = TimmWrapperForImageClassification(TimmWrapperConfig(architecture=name, num_labels=2))
    depths = parameter_depths(model)
    assert count_blocks(depths) == blocks
    assert next(n for n, depth in depths.items() if depth == blocks).startswith(f"timm_model.{last}")


def test_rejects_model_without_blocks(tiny_checkpoint):
    model, _ = build_classifier(str(tiny_checkpoint("vit")), ("a", "b"))
    model.vit.layers = torch.nn.Identity()
    with pytest.raises(MedtlError, match="no list of blocks"):
        parameter_depths(model)


STRATEGIES = [
    {"strategy": "full"},
    {"strategy": "feature_extraction"},
    {"strategy": "feature_extraction", "cache_features": False},
    {"strategy": "last_n", "unfreeze_blocks": 1},
    {"strategy": "progressive", "num_train_epochs": 2, "unfreeze_schedule": "1:1"},
    {"strategy": "differential"},
    {"strategy": "lp_ft", "num_train_epochs": 2, "probe_epochs": 1},
]


def trains(overrides: dict, depth: int, blocks: int) -> bool:
    """Return whether parameters at this depth are ever trained; the head always is."""
    if overrides["strategy"] in ("last_n", "progressive"):
        return depth >= blocks
    return overrides["strategy"] != "feature_extraction"


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("overrides", STRATEGIES, ids=lambda m: "-".join(map(str, m.values())))
def test_frozen_parameters_stay_bit_identical(family, overrides, make_trainer):
    trainer = make_trainer(family, **(FAST | overrides))
    model, head = trainer.model, head_names(trainer.model)
    depths, before = parameter_depths(model), {name: t.clone() for name, t in model.state_dict().items()}
    trainer.train()
    parameters = dict(model.named_parameters())
    parents = {f"{name}.": m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    for name, tensor in model.state_dict().items():
        changed = not torch.equal(tensor, before[name])
        if name in parameters:
            expected = (name in head or trains(overrides, depths[name], BLOCKS[family])) and "mask_token" not in name
            # The bias of attention keys does not affect the output, so it has no gradient.
            assert changed == expected or (expected and "k_proj.bias" in name), name
        elif norm := next((prefix for prefix in parents if name.startswith(prefix)), None):
            assert changed == trains(overrides, depths[f"{norm}weight"], BLOCKS[family]), name
        else:
            assert not changed, name


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit", "dinov2", "deit", "swin", "convnext"])
def test_lora_keeps_the_body_and_merges_to_a_plain_model(family, make_trainer, tiny_checkpoint):
    trainer = make_trainer(family, strategy="lora", lora_rank=2, lora_alpha=4, **FAST)
    model = trainer.model
    before = {name: t.clone() for name, t in model.named_parameters() if "lora_" not in name}
    pixels = torch.randn(2, 3, 32, 32)
    calls = []
    make_plain = trainer._make_plain
    trainer._make_plain = lambda **kw: (  # the last call that sees the adapters
        calls.append(({n: t.clone() for n, t in model.named_parameters()}, model.eval()(pixel_values=pixels).logits)),
        make_plain(**kw),
    )
    trainer.train()
    trained, logits = calls[0]
    head = head_names(model)
    for name, tensor in trained.items():
        if "lora_" in name:
            continue
        plain_name = name.replace(".base_layer", "")
        assert torch.equal(tensor, before[name]) == (plain_name not in head), name
    assert all(tensor.abs().sum() > 0 for name, tensor in trained.items() if "lora_B" in name and "k_proj" not in name)
    assert torch.allclose(model.eval()(pixel_values=pixels).logits, logits, atol=1e-5)
    untrained, _ = build_classifier(str(tiny_checkpoint(family)), ("a", "b"))
    assert model.state_dict().keys() == untrained.state_dict().keys()


def test_learning_rates_decay_by_block(make_trainer):
    trainer = make_trainer(
        "convnext", strategy="differential", layer_decay=0.5, learning_rate=0.8, head_learning_rate=3
    )
    groups = trainer.create_optimizer().param_groups
    rate = {id(p): g["lr"] for g in groups for p in g["params"]}
    head, depths = head_names(trainer.model), parameter_depths(trainer.model)
    for name, parameter in trainer.model.named_parameters():
        assert rate[id(parameter)] == pytest.approx(3 if name in head else 0.8 * 0.5 ** (5 - depths[name])), name


def test_head_learning_rate_combines_with_strategies(make_trainer):
    trainer = make_trainer("vit", strategy="last_n", learning_rate=0.1, head_learning_rate=0.5)
    groups = trainer.create_optimizer().param_groups
    assert {(g["name"], g["lr"]) for g in groups} == {("head", 0.5), ("block 2", 0.1), ("after the blocks", 0.1)}


def test_logs_trainable_parameters(make_trainer, caplog):
    more = FAST | {"num_train_epochs": 3, "head_learning_rate": 0.5}
    with caplog.at_level(logging.INFO, "hf_medtl"):
        make_trainer("timm", strategy="progressive", unfreeze_schedule="1:1,2:all", **more).train()
    text = caplog.text
    model, _ = build_classifier(make_trainer("timm").args.model_name_or_path, ("a", "b"))
    total, head = model.num_parameters(), sum(p.numel() for p in find_head(model).parameters())
    assert f"Epoch 0: {head:,} of {total:,} parameters train" in text
    assert f"Epoch 0:   head: {head:,} at a peak learning rate of 0.5" in text
    assert "Epoch 1:   block 4: " in text
    assert f"Epoch 2: {total:,} of {total:,} parameters train (100.0 %)" in text


def test_progressive_schedule():
    even = Strategy("progressive", epochs=10)
    assert [even.trainable_blocks(epoch, 4) for epoch in range(7)] == [0, 1, 2, 3, 4, 5, 5]
    explicit = Strategy("progressive", epochs=10, unfreeze_schedule="2:1, 4:3, 6:all")
    assert [explicit.trainable_blocks(epoch, 4) for epoch in range(8)] == [0, 0, 1, 1, 3, 3, 5, 5]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        {"strategy": "progressive", "unfreeze_schedule": "1:1,2:all"},
        {"strategy": "lp_ft", "probe_epochs": 1},
        {"strategy": "lp_ft", "probe_epochs": 2},
        {"strategy": "lora", "lora_rank": 2},
        {"strategy": "lora", "lora_rank": 2, "ema_decay": 0.9},
        {"strategy": "feature_extraction", "feature_views": 2},
        {"strategy": "lp_ft", "probe_epochs": 1, "ema_decay": 0.9},
    ],
    ids=lambda m: "-".join(map(str, m.values())),
)
def test_resumes_to_the_same_weights(overrides, make_trainer):
    through, again = train_and_resume(make_trainer, "vit", 5, **overrides)  # stopped in the second of three epochs
    assert same_weights(through, again)


@pytest.mark.slow
def test_best_lora_checkpoint_has_merged_weights(make_trainer):
    trainer = make_trainer("vit", strategy="lora", ema_decay=0.9, max_steps=2, save_strategy="steps", save_steps=1,
                         eval_strategy="steps", eval_steps=1)  # fmt: skip
    trainer.train()
    saved = AutoModelForImageClassification.from_pretrained(trainer.state.best_model_checkpoint).state_dict()
    current = trainer.model.state_dict()
    assert saved.keys() == current.keys()
    assert all(torch.equal(current[name], saved[name]) for name in saved)


@pytest.mark.slow
def test_lora_run_loads_in_a_new_process(stock_pool, phantoms, tiny_checkpoint, tmp_path):
    folder = run(
        Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "run", strategy="lora", learning_rate=0.01))
    )
    pixels = torch.randn(2, 3, 32, 32)
    torch.save(pixels, tmp_path / "pixels.pt")
    code = (
        "import sys, torch; from transformers import AutoModelForImageClassification as A;"
        f"m = A.from_pretrained({str(folder)!r}).eval(); x = torch.load({str(tmp_path / 'pixels.pt')!r});"
        "assert 'hf_medtl' not in sys.modules and 'peft' not in sys.modules;"
        "print(m(pixel_values=x).logits.double().tolist())"
    )
    process = stock_pool.run_code(code)
    assert process.returncode == 0, process.stderr
    expected = AutoModelForImageClassification.from_pretrained(folder).eval()(pixel_values=pixels).logits
    assert torch.allclose(torch.tensor(eval(process.stdout)), expected, atol=1e-6)
    names = {path.name for path in Path(folder).iterdir()}
    assert not names & {"adapter_model.safetensors", "adapter_config.json", "training_weights.safetensors"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        {"strategy": "progressive", "unfreeze_schedule": "1:1,2:all"},
        {"strategy": "lp_ft", "probe_epochs": 1},
        {"strategy": "lora", "ema_decay": 0.9},
    ],
    ids=lambda m: m["strategy"],
)
def test_two_processes_match_one(overrides, process_pool, phantoms, tiny_checkpoint, tmp_path):
    """DDP waits for the gradient of every parameter that required one at the start; DINOv2 has one without."""
    weights = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        values = options(
            phantoms,
            tiny_checkpoint("dinov2"),
            output,
            num_train_epochs=3,
            augmentation="none",
            optim="sgd",
            learning_rate=0.01,
            head_learning_rate=0.01,
            **overrides,
        )
        values["per_device_train_batch_size"] = 4  # batch size of a step, divided between the processes
        process_pool.run(tmp_path / f"log{processes}", *flags(**values), processes=processes)
        weights.append(AutoModelForImageClassification.from_pretrained(output).state_dict())
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=2e-3), name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"strategy": "frozen"}, "feature_extraction"),
        ({"strategy": "last_n", "unfreeze_blocks": 0}, "1 or more"),
        ({"strategy": "full", "unfreeze_blocks": 3}, "for --strategy last_n, not full"),
        ({"strategy": "differential", "layer_decay": 0.0}, "above 0 and at most 1"),
        ({"strategy": "differential", "layer_decay": 1.5}, "above 0 and at most 1"),
        ({"strategy": "lp_ft", "probe_epochs": 2}, "less than the 2"),
        ({"strategy": "lp_ft", "probe_epochs": 0}, "1 or more"),
        ({"strategy": "lp_ft", "max_steps": 4, "probe_epochs": 1}, "counts epochs"),
        ({"strategy": "progressive", "unfreeze_schedule": "soon"}, "epoch:blocks"),
        ({"strategy": "progressive", "unfreeze_schedule": "1:2,1:3"}, "must increase"),
        ({"strategy": "progressive", "unfreeze_schedule": "0:all,1:3"}, "must increase"),
        ({"strategy": "progressive", "unfreeze_schedule": "2:all"}, "training ends with epoch 1"),
        ({"strategy": "progressive"}, "3 epochs or more"),
        ({"strategy": "lora", "lora_rank": 0}, "1 or more"),
        ({"strategy": "feature_extraction", "feature_views": 0}, "at least 1"),
        ({"strategy": "last_n", "from_scratch": True}, "freeze the random weights"),
    ],
)
def test_rejects_invalid_options(overrides, message, phantoms, tiny_checkpoint, tmp_path):
    with pytest.raises(MedtlError, match=message):
        Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "run", **overrides))


@pytest.mark.parametrize(
    ("family", "overrides", "message"),
    [
        ("vit", {"strategy": "last_n", "unfreeze_blocks": 3}, "has 2 blocks, so 3 can't"),
        ("vit", {"strategy": "progressive", "unfreeze_schedule": "1:3"}, "has 2 blocks, so 3 can't"),
        ("timm", {"strategy": "lora"}, "hold 0 % of the weights"),
        ("cnn", {"strategy": "lora"}, "hold 2 % of the weights"),
    ],
)
def test_rejects_unsupported_strategies_before_training(
    family, overrides, message, phantoms, tiny_checkpoint, tmp_path
):
    with pytest.raises(MedtlError, match=message):
        run(Recipe(**options(phantoms, tiny_checkpoint(family), tmp_path / "run", **overrides)))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_rejects_resuming_with_another_strategy(phantoms, tiny_checkpoint, tmp_path):
    values = options(phantoms, tiny_checkpoint("vit"), tmp_path / "run", num_train_epochs=1)
    folder = run(Recipe(**values))
    (folder / "UNFINISHED").touch()
    with pytest.raises(MedtlError, match=r"--strategy was not given in .* and is lora now"):
        run(Recipe(**values, strategy="lora", resume_from_checkpoint="auto"))


def test_removed_adapters_leave_no_trace(tiny_checkpoint):
    model, _ = build_classifier(str(tiny_checkpoint("vit")), ("a", "b"))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    assert remove_lora(add_lora(model, 2, 4), merge=False) is model
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
