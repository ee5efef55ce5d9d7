"""Any number of labels a picture: from a table to stock `pipeline()`, with the same promises as for one label."""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoConfig, EvalPrediction

from hf_medtl import MedtlError, Recipe, load, run
from hf_medtl.data.audit import audit
from hf_medtl.data.download import unpack_medmnist
from hf_medtl.data.leakage import load_external
from hf_medtl.data.loading import survey
from hf_medtl.data.publish import write_parquet
from hf_medtl.data.splits import split_groups
from hf_medtl.evaluation.calibration import fit_multilabel_temperature
from hf_medtl.evaluation.compare import Predictions
from hf_medtl.evaluation.evaluate import multilabel_results
from hf_medtl.evaluation.intervals import metric_intervals, multilabel_metric_intervals
from hf_medtl.runs.train import prepare_splits
from hf_medtl.tasks import TASKS, task_for_dataset
from hf_medtl.training.losses import MultiLabelLoss
from hf_medtl.training.trainer import MedicalTrainer, mix_batch
from tests.support.commands import options, script
from tests.support.multilabel_tables import drawn, table

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-1.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
TARGETS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
WEIGHTS = torch.tensor([0.5, 1.0, 3.0])
LABELS = ("bar", "disc")


@pytest.fixture(scope="module")
def marks(tmp_path_factory):
    return table(tmp_path_factory.mktemp("marks"))


@pytest.fixture
def trainer_of_marks(marks, tiny, tmp_path):
    def make(family: str = "vit", **more: object) -> MedicalTrainer:
        recipe = Recipe(**options(marks, tiny(family), tmp_path / "run", dataset="table", **more))
        loaded = load("table", marks)
        torch.manual_seed(0)
        task = task_for_dataset(loaded)
        model, processor = task.build(recipe, loaded.labels)
        loss = task.loss(recipe, loaded.labels, task.targets(loaded, "train"))
        split = prepare_splits(recipe, loaded, processor)
        return MedicalTrainer(recipe, model, processor, **split, loss=loss, metrics=task.validation_metrics)

    return make


# --- data


def test_loads_multilabel_table(marks):
    loaded = load("table", marks)
    assert loaded.labels == LABELS
    assert loaded.spec.multilabel
    assert loaded.positive is None
    assert set(loaded.table["label"]) == {"", "bar", "disc", "bar|disc"}
    assert (loaded.table.groupby("patient")["split"].nunique() == 1).all()
    counts = loaded.counts()
    assert {name: sum(counts[split][name] for split in counts) for name in counts["train"]} == {
        "bar": 48,
        "disc": 48,
        "(none)": 24,
        "(all)": 96,
    }
    assert all(abs(its[label] / its["(all)"] - 0.5) < 0.15 for its in counts.values() for label in LABELS)
    row = next(row for row in loaded.splits()["train"] if len(row["label"]) == 2)
    assert row["label"] == [0, 1]
    task = TASKS["multilabel"]
    assert task.targets(loaded, "train").dtype == np.float32
    assert np.array_equal(task.targets(loaded, "test"), loaded.label_matrix()[loaded.table["split"] == "test"])


def test_loads_multilabel_folder_metadata(marks, tmp_path):
    rows = pd.read_csv(marks, keep_default_na=False)
    for name in rows["file_name"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((marks.parent / name).read_bytes())
    rows["label"] = rows["label"].replace("", "No Finding")  # as in NIH ChestX-ray14
    rows.to_csv(tmp_path / "metadata.csv", index=False)
    loaded = load("imagefolder", tmp_path)
    assert loaded.labels == LABELS
    assert loaded.counts()["train"]["(none)"] > 0
    rows.assign(label="bar|No Finding").to_csv(tmp_path / "metadata.csv", index=False)
    with pytest.raises(MedtlError, match="96 pictures have a label and none"):
        load("imagefolder", tmp_path)


def test_single_label_data_stay_single_label(marks, tmp_path):
    file = marks.parent / "single.csv"
    rows = pd.read_csv(marks, keep_default_na=False)
    rows.to_csv(file, index=False)
    rows.assign(label=rows["label"].replace("bar | disc", "bar")).to_csv(file, index=False)
    with pytest.raises(MedtlError, match="24 rows have no label"):
        load("table", file)
    drawn(tmp_path / "a|b" / "x.png", 0, "bar")
    drawn(tmp_path / "a" / "x.png", 1, "bar")
    with pytest.raises(MedtlError, match=r"can't have a \|, found a, a\|b"):
        load("imagefolder", tmp_path)


@pytest.mark.parametrize("seed", range(5))
def test_rare_labels_are_in_every_split_however_they_combine(seed):
    """20 labels with a long tail: most combinations occur once, and no combination needs a share."""
    rng = np.random.default_rng(seed)
    chances = np.geomspace(0.3, 0.01, 20)
    has = rng.random((800, 20)) < chances
    cells = ["|".join(f"l{k:02d}" for k in np.flatnonzero(row)) for row in has]
    groups = [f"g{i // 2}" for i in range(800)]
    split = split_groups(cells, groups, {"train": 0.65, "validation": 0.15, "test": 0.2}, seed)
    assert len({(g, s) for g, s in zip(groups, split, strict=True)}) == 400
    for name, share in (("train", 0.65), ("validation", 0.15), ("test", 0.2)):
        here = has[split == name]
        assert here.any(axis=0).all(), name
        assert np.abs(here.sum(axis=0) / has.sum(axis=0) - share)[:10].max() < 0.06
        assert abs((~here.any(axis=1)).sum() / (~has.any(axis=1)).sum() - share) < 0.06


def npz(path: Path, names: int = 14, **more: np.ndarray) -> Path:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in {"train": 60, "val": 16, "test": 20}.items():
        small = rng.integers(0, 256, (n, 4, 4), dtype=np.uint8)
        big = [np.asarray(Image.fromarray(s).resize((28, 28), Image.Resampling.BICUBIC)) for s in small]
        labels = (rng.random((n, names)) < 0.3).astype(np.uint8)
        labels[0] = 0
        arrays |= {f"{split}_images": np.stack(big), f"{split}_labels": labels}
    np.savez(path, **arrays | more)
    return path


def test_loads_multilabel_medmnist(tmp_path):
    file = npz(tmp_path / "chestmnist.npz")
    loaded = load("medmnist", file)
    assert len(loaded.labels) == 14
    assert "hernia" in loaded.labels
    counts = loaded.counts()
    assert {split: its["(all)"] for split, its in counts.items()} == {"train": 60, "validation": 16, "test": 20}
    with np.load(file) as arrays:
        assert counts["test"]["edema"] == arrays["test_labels"][:, 9].sum()
        assert counts["train"]["(none)"] == (arrays["train_labels"].sum(axis=1) == 0).sum()
    assert unpack_medmnist(file) == loaded.root
    one_each = np.eye(14, dtype=np.uint8)  # the set has several even if no picture here has two
    lonely = {
        f"{split}_labels": np.resize(one_each, (n, 14)) for split, n in (("train", 60), ("val", 16), ("test", 20))
    }
    assert load("medmnist", npz(tmp_path / "other.npz", **lonely), official_split=False).spec.multilabel
    for name, wrong in (("threes", np.full((60, 14), 3)), ("fewer", np.zeros((60, 13), int))):
        with pytest.raises(MedtlError, match=r"expected (one label a picture, or 0 or 1|as many labels)"):
            load("medmnist", npz(tmp_path / f"{name}.npz", train_labels=wrong))


def test_loads_multilabel_dataset_from_hub(hub, marks):
    loaded = load("table", marks)
    loaded.splits().push_to_hub("ci/marks")
    again = load("ci/marks")
    assert again.labels == LABELS
    assert again.counts() == loaded.counts()


def test_maps_labels_of_external_dataset(marks, tmp_path):
    loaded = load("table", marks)
    other = table(tmp_path / "other", 24, 5000, ("|", "line", "disc", "line|disc"))
    outside = load_external(loaded, "table", other, labels={"line": "bar"})
    assert outside.labels == LABELS
    assert outside.counts()["test"] == {"bar": 12, "disc": 12, "(none)": 6, "(all)": 24}
    with pytest.raises(MedtlError, match="says nothing about bar"):
        load_external(loaded, "table", other)
    single = table(tmp_path / "single", 24, 6000, ("bar", "disc"))
    with pytest.raises(MedtlError, match="one has several labels a picture, the other does not"):
        load_external(loaded, "table", single)


def test_rejects_options_that_do_not_support_multilabel(marks, tmp_path):
    with pytest.raises(MedtlError, match="leave out --positive_label"):
        load("table", marks, positive="bar")
    with pytest.raises(MedtlError, match="The audit knows sets with one"):
        audit(survey("table", marks))
    with pytest.raises(MedtlError, match="Only sets with one are written"):
        write_parquet(load("table", marks), tmp_path, [], "ci/marks")
    recipe = Recipe(class_weights="balanced", use_cpu=True)
    with pytest.raises(MedtlError, match="The training split has no images of disc"):
        TASKS["multilabel"].loss(recipe, LABELS, np.array([[1, 0], [0, 0]], np.float32))
    with pytest.raises(MedtlError, match="The training split has no images of the absence of bar"):
        TASKS["multilabel"].loss(recipe, LABELS, np.array([[1, 1], [1, 0]], np.float32))


@pytest.mark.real
def test_multilabel_on_real_findings(shared, tmp_path):
    """NIH's own column of findings."""
    source = shared / "data" / "nih-edema-mini"
    rows = pd.read_csv(source / "labels.csv")
    rows["file_name"] = rows["split"] + "/" + rows["class"] + "/" + rows["file"]
    for name in rows["file_name"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((source / name).read_bytes())
    rows = rows.rename(columns={"finding_labels": "label", "patient_id": "patient"})
    rows[["file_name", "label", "patient", "split"]].to_csv(tmp_path / "table.csv", index=False)
    found = survey("table", tmp_path / "table.csv")
    assert (found.table["label"] == "").sum() == 46
    assert found.table["label"].str.contains("Edema").sum() == 31
    assert "No Finding" not in found.labels


# --- loss


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_matches_torch_and_lin_et_al(weights, smoothing):
    soft = TARGETS * (1 - smoothing) + smoothing / 2
    expected = binary_cross_entropy_with_logits(LOGITS, soft, pos_weight=weights)
    assert torch.allclose(MultiLabelLoss(weights, 0.0, smoothing)(LOGITS, TARGETS), expected)
    p = LOGITS.double().sigmoid()
    positive = soft * (1 - p) ** 2 * -p.log() * (1 if weights is None else weights)
    by_hand = (positive + (1 - soft) * p**2 * -(1 - p).log()).mean()
    assert torch.allclose(MultiLabelLoss(weights, 2.0, smoothing)(LOGITS, TARGETS).double(), by_hand)
    almost = MultiLabelLoss(weights, 1e-7, smoothing)(LOGITS, TARGETS)
    assert torch.allclose(almost, expected, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_parts_of_a_batch_add_up(gamma):
    loss = MultiLabelLoss(WEIGHTS, gamma, 0.05)
    parts = loss(LOGITS[:1], TARGETS[:1], 12) + loss(LOGITS[1:], TARGETS[1:], 12)
    assert torch.allclose(parts, loss(LOGITS, TARGETS))


def test_recipe_options_reach_the_loss():
    train = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    found = TASKS["multilabel"].loss(Recipe(class_weights="balanced", loss="focal", use_cpu=True), LABELS, train)
    assert found.weights.tolist() == pytest.approx([1 / 3, 3])  # negatives by positives
    assert found.gamma == 2.0
    effective = TASKS["multilabel"].loss(Recipe(class_weights="effective", use_cpu=True), LABELS, train)
    assert effective.weights[1] == pytest.approx((1 - 0.999**3) / (1 - 0.999))  # about 3, of one picture to 3
    assert TASKS["multilabel"].loss(Recipe(use_cpu=True), LABELS, train).weights is None


def test_mixup_mixes_multilabel_targets(trainer_of_marks):
    pixels = torch.randn(4, 3, 8, 8)
    _, labels = mix_batch(pixels, TARGETS, 0.5, 0.0, np.random.default_rng(0))
    share = labels[1, 0]  # of its neighbour, which has the label
    assert torch.allclose(labels, torch.lerp(TARGETS, TARGETS.roll(1, 0), share))
    trainer = trainer_of_marks(cutmix=1.0)
    trainer.model.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    assert batch["labels"].shape == (8, 2)
    assert batch["labels"].dtype == torch.float32


@pytest.mark.parametrize("more", [{}, {"class_weights": "balanced", "loss": "focal"}])
def test_accumulated_batches_match_one_batch(more, trainer_of_marks):
    """The loss is divided by the targets of the whole optimizer step."""
    seen = []
    for size, times in ((8, 1), (2, 4)):
        trainer = trainer_of_marks(optim="sgd", learning_rate=1.0, max_steps=1, save_strategy="no", logging_steps=1,
                                   eval_strategy="no", load_best_model_at_end=False, early_stopping_patience=0,
                                   per_device_train_batch_size=size, gradient_accumulation_steps=times,
                                   max_grad_norm=1e9, lr_scheduler_type="constant", warmup_steps=0, **more)  # fmt: skip
        trainer.model.eval()
        for module in trainer.model.modules():
            module.train = lambda mode=True, module=module: module
        trainer.train()
        seen.append(next(row for row in trainer.state.log_history if "grad_norm" in row))
    assert seen[0]["grad_norm"] == pytest.approx(seen[1]["grad_norm"], rel=1e-3)
    assert seen[0]["loss"] == pytest.approx(seen[1]["loss"], rel=1e-3)
    assert seen[0]["loss"] < 3  # the mean over pictures and labels


def test_cached_features_and_resume(trainer_of_marks):
    more = {"strategy": "feature_extraction", "num_train_epochs": 3, "learning_rate": 0.05, "save_total_limit": None,
            "early_stopping_patience": 0, "load_best_model_at_end": False, "feature_views": 2}  # fmt: skip
    through = trainer_of_marks(**more)
    through.train()
    again = trainer_of_marks(**more)
    checkpoint = min(Path(again.args.output_dir).glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    again.train(resume_from_checkpoint=str(checkpoint))
    theirs = again.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in through.model.state_dict().items())
    rows = [row for row in through.state.log_history if "eval_loss" in row]
    assert rows[-1]["eval_roc_auc"] > rows[0]["eval_roc_auc"] - 0.2
    assert rows[-1]["eval_auc_labels"] == 2


# --- evaluation


def study(n: int = 300, labels: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    groups = np.arange(n) // 2
    has = (rng.random((n // 2, labels)) < np.linspace(0.15, 0.5, labels))[groups]
    chances = 1 / (1 + np.exp(-(1.5 * (has - 0.5) + rng.normal(size=(n, labels)))))
    return has, chances, groups


def test_validation_metrics_skip_labels_without_both_classes():
    has, chances, _ = study()
    has[:, 1] = False
    logits = np.log(chances / (1 - chances)).astype(np.float32)
    found = TASKS["multilabel"].validation_metrics(EvalPrediction(logits, has.astype(np.float32)))
    areas = [roc_auc_score(has[:, k], logits[:, k]) for k in (0, 2)]
    assert found["roc_auc"] == pytest.approx(np.mean(areas), abs=1e-6)
    assert found["auc_labels"] == 2
    assert all(type(value) is float for value in found.values())


def test_intervals_of_means_and_of_each_label():
    has, chances, groups = study()
    means, each = multilabel_metric_intervals(has, chances, groups, [0.5, 0.4, 0.5], resamples=500)
    for k, single in enumerate(each):
        assert single["roc_auc"].value == pytest.approx(roc_auc_score(has[:, k], chances[:, k]))
        assert single["average_precision"].value == pytest.approx(average_precision_score(has[:, k], chances[:, k]))
        both = np.column_stack([1 - chances[:, k], chances[:, k]])
        alone = metric_intervals(has[:, k].astype(int), both, groups, 1, [0.5, 0.4, 0.5][k], resamples=500)
        assert {name: interval.value for name, interval in alone.items()} == {
            name: interval.value for name, interval in single.items()
        }
        assert np.allclose(single["roc_auc"], alone["roc_auc"], atol=0.02)  # other draws
    for name, interval in means.items():
        assert interval.value == pytest.approx(np.mean([single[name].value for single in each])), name
        assert interval.low < interval.high
    auc = means["roc_auc"]
    assert auc.low < auc.value < auc.high
    assert auc.high - auc.low < np.mean([single["roc_auc"].high - single["roc_auc"].low for single in each])


def test_equal_labels_share_their_draws():
    """A mean of two copies of one label is as uncertain as the label itself: drawn apart it would seem less so."""
    has, chances, groups = study(labels=1)
    once, _ = multilabel_metric_intervals(has, chances, groups, [0.5], resamples=300)
    twice, _ = multilabel_metric_intervals(
        np.repeat(has, 2, 1), np.repeat(chances, 2, 1), groups, [0.5, 0.5], resamples=300
    )
    assert np.allclose(once["roc_auc"], twice["roc_auc"])


def test_intervals_without_errors_are_not_degenerate():
    has, _, groups = study()
    means, each = multilabel_metric_intervals(has, has * 0.98 + 0.01, groups, [0.5] * 3, resamples=200)
    for name in ("roc_auc", "sensitivity", "accuracy", "f1", "average_precision"):
        assert means[name].value == pytest.approx(1)
        assert each[0][name].low < means[name].low < 0.999


def test_undefined_metric_is_null_with_a_reason():
    has, chances, groups = study()
    has[:, 1] = False
    result = multilabel_results(has, chances, groups.tolist(), {"a": 0.5, "b": 0.5, "c": 1.1})
    assert result["metrics"]["roc_auc"]["n_labels"] == 2
    undefined = {"value": None, "low": None, "high": None}
    assert result["per_label"]["b"]["metrics"]["roc_auc"] == undefined | {"reason": "no picture has it"}
    assert result["per_label"]["c"]["metrics"]["ppv"] == undefined | {"reason": "no picture is decided to have it"}
    assert result["per_label"]["a"]["n_positive"] == has[:, 0].sum()
    assert np.sum(result["per_label"]["a"]["confusion_matrix"]) == 300
    assert result["per_label"]["a"]["confusion_matrix"][1][1] == (has[:, 0] & (chances[:, 0] >= 0.5)).sum()
    json.dumps(result, allow_nan=False)
    nothing = multilabel_results(np.zeros_like(has), chances, groups.tolist(), {"a": 0.5, "b": 0.5, "c": 0.5})
    assert nothing["metrics"]["roc_auc"] == undefined | {"n_labels": 0}


def test_one_temperature_for_all_labels():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3)) * 2
    has = rng.random(logits.shape) < 1 / (1 + np.exp(-logits))
    assert fit_multilabel_temperature(logits * 3, has) == pytest.approx(3, rel=0.05)
    certain = np.where(has, 5.0, -5.0)
    assert fit_multilabel_temperature(certain[:20], has[:20]) > 0.06  # no certainty that 20 pictures do not give


# --- the whole run

# What a stranger would write: stock transformers, and never hf_medtl.
STRANGER = """
import sys
from pathlib import Path
import pandas as pd
from transformers import pipeline

folder, data, trust = Path(sys.argv[1]), Path(sys.argv[2]), len(sys.argv) > 3
rows = pd.read_csv(folder / "predictions.csv", keep_default_na=False)
paths = pd.read_csv(folder / "splits.csv").set_index("image_id")["path"]
classify = pipeline("image-classification", model=folder, trust_remote_code=trust)
answers = classify([str(data / paths[name]) for name in rows["image_id"]], top_k=None)
for label in classify.model.config.thresholds:
    scores = [next(a["score"] for a in answer if a["label"] == label) for answer in answers]
    assert max(abs(rows[f"p_{label}"] - scores)) < 1e-6, label
assert "hf_medtl" not in sys.modules
"""


@pytest.fixture(scope="module")
def finished(marks, tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "marks"
    other = table(tmp_path_factory.mktemp("other"), 24, 5000)
    return run(
        Recipe(**options(marks, tiny("vit"), folder, dataset="table", num_train_epochs=6, learning_rate=2e-3,
                         external_dataset="table", external_data_dir=str(other)))
    )  # fmt: skip


def test_run_folder_is_complete(finished):
    result = json.loads((finished / "results.json").read_text())
    assert result["labels"] == list(LABELS)
    assert result["metrics"]["roc_auc"]["value"] > 0.8
    config = AutoConfig.from_pretrained(finished)
    assert config.problem_type == "multi_label_classification"
    assert list(config.thresholds) == list(LABELS)
    rows = pd.read_csv(finished / "predictions.csv", keep_default_na=False)
    assert list(rows.columns) == ["image_id", "label", "group", "p_bar", "p_disc"]
    assert ((rows["p_bar"] > 0.5) & (rows["p_disc"] > 0.5)).any()  # a softmax can't say both
    for label in LABELS:
        its = result["per_label"][label]
        has = rows["label"].str.contains(label)
        assert its["n_positive"] == has.sum()
        assert its["metrics"]["roc_auc"]["value"] == pytest.approx(roc_auc_score(has, rows[f"p_{label}"]), abs=1e-9)
        assert its["threshold"] == config.thresholds[label]
        assert its["threshold_fitted"]
    assert result["external"]["n"] == 24
    for name in ("history", "roc", "reliability"):
        Image.open(finished / "figures" / f"{name}.png").verify()
    text = (finished / "README.md").read_text()
    assert "to find any of bar, disc" in text
    auc = result["per_label"]["bar"]["metrics"]["roc_auc"]
    assert f"{auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]" in text
    assert "| split | bar | disc | (none) | (all) |" in text
    with pytest.raises(MedtlError, match="Only runs with one are compared"):
        Predictions.read(finished)


def test_stock_pipeline_gives_the_same_probabilities(finished, marks):
    done = script(sys.executable, "-I", "-c", STRANGER, finished, marks.parent)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("family", ["timm", "cnn"])
def test_other_families(family, marks, tiny, tmp_path, capsys, caplog):
    """With a label that validation lacks, and what the run prints."""
    rows = pd.read_csv(marks, keep_default_na=False)
    place = ["train"] * 56 + ["validation"] * 16 + ["test"] * 24
    rows = rows.assign(split=place, label=rows["label"] + "|")
    rows.loc[[0, 1, 90], "label"] += "rare"
    (file := marks.parent / f"{family}.csv").write_text(rows.drop(columns="patient").to_csv(index=False))
    splits = load("table", file, official_split=False).table
    splits = splits.assign(split=place)
    splits.to_csv(tmp_path / "splits.csv", index=False)
    more = {"dataset": "table", "splits": str(tmp_path / "splits.csv"), "class_weights": "balanced", "mixup": 0.2}
    with caplog.at_level(logging.WARNING, "hf_medtl"):
        folder = run(Recipe(**options(file, tiny(family), tmp_path / "run", **more)))
    assert "No threshold can be fitted for rare" in caplog.text
    result = json.loads((folder / "results.json").read_text())
    assert result["per_label"]["rare"]["threshold"] == 0.5
    assert not result["per_label"]["rare"]["threshold_fitted"]
    assert "0.500 (not fitted)" in (folder / "README.md").read_text()
    shown = capsys.readouterr().out
    for word in ("(none)", "means over the labels", "rare"):
        assert word in shown
    done = script(sys.executable, "-I", "-c", STRANGER, folder, file.parent, *(["trust"] if family == "cnn" else []))
    assert done.returncode == 0, done.stderr
    # A model of one label a picture that starts from it must not keep the sigmoid.
    recipe = Recipe(**options(file, folder, tmp_path / "next"))
    assert TASKS["classification"].build(recipe, ("a", "b"))[0].config.problem_type is None
