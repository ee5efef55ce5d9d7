"""Multilabel classification: from a table to stock `pipeline()`."""

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoConfig, EvalPrediction

from benchmarks.comparison import Predictions
from hf_medtl import MedtlError, Recipe, load, run
from hf_medtl.data.audit import audit
from hf_medtl.data.download import unpack_medmnist
from hf_medtl.data.leakage import load_external
from hf_medtl.data.loading import survey
from hf_medtl.data.publish import write_parquet
from hf_medtl.data.splits import split_groups
from hf_medtl.evaluation.calibration import fit_multilabel_temperature
from hf_medtl.evaluation.evaluate import multilabel_results
from hf_medtl.evaluation.intervals import metric_intervals, multilabel_metric_intervals
from hf_medtl.tasks import TASKS
from hf_medtl.training.losses import MultiLabelLoss
from hf_medtl.training.mixing import mix_batch
from hf_medtl.training.trainer import MedicalTrainer
from tests.support.commands import options
from tests.support.multilabel_tables import draw_image, write_table
from tests.support.resumed_training import build_trainer, same_weights

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-1.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
TARGETS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
WEIGHTS = torch.tensor([0.5, 1.0, 3.0])
LABELS = ("bar", "disc")


@pytest.fixture(scope="module")
def multilabel_csv(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("marks"))


@pytest.fixture
def make_multilabel_trainer(multilabel_csv, tiny_checkpoint, tmp_path):
    def make(family: str = "vit", **overrides: object) -> MedicalTrainer:
        values = options(multilabel_csv, tiny_checkpoint(family), tmp_path / "run", dataset="table", **overrides)
        return build_trainer(Recipe(**values))

    return make


# --- data


def test_loads_multilabel_table(multilabel_csv):
    loaded = load("table", multilabel_csv)
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
    assert all(
        abs(row_counts[label] / row_counts["(all)"] - 0.5) < 0.15 for row_counts in counts.values() for label in LABELS
    )
    row = next(row for row in loaded.splits()["train"] if len(row["label"]) == 2)
    assert row["label"] == [0, 1]
    task = TASKS["multilabel"]
    assert task.targets(loaded, "train").dtype == np.float32
    assert np.array_equal(task.targets(loaded, "test"), loaded.label_matrix()[loaded.table["split"] == "test"])


def test_loads_multilabel_folder_metadata(multilabel_csv, tmp_path):
    rows = pd.read_csv(multilabel_csv, keep_default_na=False)
    for name in rows["file_name"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((multilabel_csv.parent / name).read_bytes())
    rows["label"] = rows["label"].replace("", "No Finding")  # as in NIH ChestX-ray14
    rows.to_csv(tmp_path / "metadata.csv", index=False)
    loaded = load("imagefolder", tmp_path)
    assert loaded.labels == LABELS
    assert loaded.counts()["train"]["(none)"] > 0
    rows.assign(label="bar|No Finding").to_csv(tmp_path / "metadata.csv", index=False)
    with pytest.raises(MedtlError, match="96 images have a label and no finding"):
        load("imagefolder", tmp_path)


def test_single_label_data_stay_single_label(multilabel_csv, tmp_path):
    file = multilabel_csv.parent / "single.csv"
    rows = pd.read_csv(multilabel_csv, keep_default_na=False)
    rows.to_csv(file, index=False)
    rows.assign(label=rows["label"].replace("bar | disc", "bar")).to_csv(file, index=False)
    with pytest.raises(MedtlError, match="24 rows have no label"):
        load("table", file)
    draw_image(tmp_path / "a|b" / "x.png", 0, "bar")
    draw_image(tmp_path / "a" / "x.png", 1, "bar")
    with pytest.raises(MedtlError, match=r"can't contain a \|, found a, a\|b"):
        load("imagefolder", tmp_path)


@pytest.mark.parametrize("seed", range(5))
def test_rare_labels_are_in_every_split(seed):
    """Most combinations of 20 long-tailed labels occur once, so splits cannot stratify by combination."""
    rng = np.random.default_rng(seed)
    frequencies = np.geomspace(0.3, 0.01, 20)
    has = rng.random((800, 20)) < frequencies
    cells = ["|".join(f"l{k:02d}" for k in np.flatnonzero(row)) for row in has]
    groups = [f"g{i // 2}" for i in range(800)]
    split = split_groups(cells, groups, {"train": 0.65, "validation": 0.15, "test": 0.2}, seed)
    assert len({(g, s) for g, s in zip(groups, split, strict=True)}) == 400
    for name, fraction in (("train", 0.65), ("validation", 0.15), ("test", 0.2)):
        in_split = has[split == name]
        assert in_split.any(axis=0).all(), name
        assert np.abs(in_split.sum(axis=0) / has.sum(axis=0) - fraction)[:10].max() < 0.06
        assert abs((~in_split.any(axis=1)).sum() / (~has.any(axis=1)).sum() - fraction) < 0.06


def npz(path: Path, names: int = 14, **replaced: np.ndarray) -> Path:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in {"train": 60, "val": 16, "test": 20}.items():
        small = rng.integers(0, 256, (n, 4, 4), dtype=np.uint8)
        big = [np.asarray(Image.fromarray(s).resize((28, 28), Image.Resampling.BICUBIC)) for s in small]
        labels = (rng.random((n, names)) < 0.3).astype(np.uint8)
        labels[0] = 0
        arrays |= {f"{split}_images": np.stack(big), f"{split}_labels": labels}
    np.savez(path, **arrays | replaced)
    return path


def test_loads_multilabel_medmnist(tmp_path):
    file = npz(tmp_path / "chestmnist.npz")
    loaded = load("medmnist", file)
    assert len(loaded.labels) == 14
    assert "hernia" in loaded.labels
    counts = loaded.counts()
    assert {split: row_counts["(all)"] for split, row_counts in counts.items()} == {
        "train": 60,
        "validation": 16,
        "test": 20,
    }
    with np.load(file) as arrays:
        assert counts["test"]["edema"] == arrays["test_labels"][:, 9].sum()
        assert counts["train"]["(none)"] == (arrays["train_labels"].sum(axis=1) == 0).sum()
    assert unpack_medmnist(file) == loaded.root
    single_labels = np.eye(14, dtype=np.uint8)  # the dataset is multilabel even if no image has two labels
    labels = {
        f"{split}_labels": np.resize(single_labels, (n, 14)) for split, n in (("train", 60), ("val", 16), ("test", 20))
    }
    assert load("medmnist", npz(tmp_path / "other.npz", **labels), official_split=False).spec.multilabel
    for name, invalid in (("threes", np.full((60, 14), 3)), ("fewer", np.zeros((60, 13), int))):
        with pytest.raises(MedtlError, match=r"expected (one label per image, or 0 or 1|the same number of labels)"):
            load("medmnist", npz(tmp_path / f"{name}.npz", train_labels=invalid))


def test_loads_multilabel_dataset_from_hub(hub, multilabel_csv):
    loaded = load("table", multilabel_csv)
    loaded.splits().push_to_hub("ci/marks")
    again = load("ci/marks")
    assert again.labels == LABELS
    assert again.counts() == loaded.counts()


def test_maps_labels_of_external_dataset(multilabel_csv, tmp_path):
    loaded = load("table", multilabel_csv)
    external_csv = write_table(tmp_path / "other", 24, 5000, ("|", "line", "disc", "line|disc"))
    external = load_external(loaded, "table", external_csv, labels={"line": "bar"})
    assert external.labels == LABELS
    assert external.counts()["test"] == {"bar": 12, "disc": 12, "(none)": 6, "(all)": 24}
    with pytest.raises(MedtlError, match="does not annotate bar"):
        load_external(loaded, "table", external_csv)
    single = write_table(tmp_path / "single", 24, 6000, ("bar", "disc"))
    with pytest.raises(MedtlError, match="is multilabel, the other is not"):
        load_external(loaded, "table", single)


def test_rejects_options_that_do_not_support_multilabel(multilabel_csv, tmp_path):
    with pytest.raises(MedtlError, match="remove --positive_label"):
        load("table", multilabel_csv, positive="bar")
    with pytest.raises(MedtlError, match="The audit only supports datasets with one label per image"):
        audit(survey("table", multilabel_csv))
    with pytest.raises(MedtlError, match="Only datasets with one label per image can be written"):
        write_parquet(load("table", multilabel_csv), tmp_path, [], "ci/marks")
    recipe = Recipe(class_weights="balanced", use_cpu=True)
    with pytest.raises(MedtlError, match="The training split has no images of disc"):
        TASKS["multilabel"].loss(recipe, LABELS, np.array([[1, 0], [0, 0]], np.float32))
    with pytest.raises(MedtlError, match="The training split has no images of the absence of bar"):
        TASKS["multilabel"].loss(recipe, LABELS, np.array([[1, 1], [1, 0]], np.float32))


@pytest.mark.real
def test_loads_real_multilabel_findings(shared, tmp_path):
    """The column of findings as NIH provides it."""
    source = shared / "data" / "nih-edema-mini"
    rows = pd.read_csv(source / "labels.csv")
    rows["file_name"] = rows["split"] + "/" + rows["class"] + "/" + rows["file"]
    for name in rows["file_name"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((source / name).read_bytes())
    rows = rows.rename(columns={"finding_labels": "label", "patient_id": "patient"})
    rows[["file_name", "label", "patient", "split"]].to_csv(tmp_path / "table.csv", index=False)
    dataset = survey("table", tmp_path / "table.csv")
    assert (dataset.table["label"] == "").sum() == 46
    assert dataset.table["label"].str.contains("Edema").sum() == 31
    assert "No Finding" not in dataset.labels


# --- loss


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_matches_torch_and_lin_et_al(weights, smoothing):
    soft = TARGETS * (1 - smoothing) + smoothing / 2
    expected = binary_cross_entropy_with_logits(LOGITS, soft, pos_weight=weights)
    assert torch.allclose(MultiLabelLoss(weights, 0.0, smoothing)(LOGITS, TARGETS), expected)
    p = LOGITS.double().sigmoid()
    positive = soft * (1 - p) ** 2 * -p.log() * (1 if weights is None else weights)
    focal = (positive + (1 - soft) * p**2 * -(1 - p).log()).mean()
    assert torch.allclose(MultiLabelLoss(weights, 2.0, smoothing)(LOGITS, TARGETS).double(), focal)
    almost = MultiLabelLoss(weights, 1e-7, smoothing)(LOGITS, TARGETS)
    assert torch.allclose(almost, expected, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_parts_of_a_batch_add_up(gamma):
    loss = MultiLabelLoss(WEIGHTS, gamma, 0.05)
    total = loss(LOGITS[:1], TARGETS[:1], 12) + loss(LOGITS[1:], TARGETS[1:], 12)
    assert torch.allclose(total, loss(LOGITS, TARGETS))


def test_recipe_options_reach_the_loss():
    train = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    loss = TASKS["multilabel"].loss(Recipe(class_weights="balanced", loss="focal", use_cpu=True), LABELS, train)
    assert loss.weights.tolist() == pytest.approx([1 / 3, 3])  # negatives divided by positives
    assert loss.gamma == 2.0
    effective = TASKS["multilabel"].loss(Recipe(class_weights="effective", use_cpu=True), LABELS, train)
    assert effective.weights[1] == pytest.approx(
        (1 - 0.999**3) / (1 - 0.999)
    )  # about 3, since one image is positive and 3 are not
    assert TASKS["multilabel"].loss(Recipe(use_cpu=True), LABELS, train).weights is None


def test_mixup_mixes_multilabel_targets(make_multilabel_trainer):
    pixels = torch.randn(4, 3, 8, 8)
    _, labels = mix_batch(pixels, TARGETS, 0.5, 0.0, np.random.default_rng(0))
    weight = labels[1, 0]  # weight of the neighbour, which has the label
    assert torch.allclose(labels, torch.lerp(TARGETS, TARGETS.roll(1, 0), weight))
    trainer = make_multilabel_trainer(cutmix=1.0)
    trainer.model.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    assert batch["labels"].shape == (8, 2)
    assert batch["labels"].dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [{}, {"class_weights": "balanced", "loss": "focal"}])
def test_accumulated_batches_match_one_batch(overrides, make_multilabel_trainer):
    """The loss is divided by the targets of the whole optimizer step."""
    logs = []
    for size, times in ((8, 1), (2, 4)):
        trainer = make_multilabel_trainer(
            optim="sgd",
            learning_rate=1.0,
            max_steps=1,
            save_strategy="no",
            logging_steps=1,
            eval_strategy="no",
            load_best_model_at_end=False,
            early_stopping_patience=0,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=times,
            max_grad_norm=1e9,
            lr_scheduler_type="constant",
            warmup_steps=0,
            **overrides,
        )
        trainer.model.eval()
        for module in trainer.model.modules():
            module.train = lambda mode=True, module=module: module
        trainer.train()
        logs.append(next(row for row in trainer.state.log_history if "grad_norm" in row))
    assert logs[0]["grad_norm"] == pytest.approx(logs[1]["grad_norm"], rel=1e-3)
    assert logs[0]["loss"] == pytest.approx(logs[1]["loss"], rel=1e-3)
    assert logs[0]["loss"] < 3  # the mean over images and labels


@pytest.mark.slow
def test_cached_features_and_resume(make_multilabel_trainer):
    overrides = {
        "strategy": "feature_extraction",
        "num_train_epochs": 3,
        "learning_rate": 0.05,
        "save_total_limit": None,
        "early_stopping_patience": 0,
        "load_best_model_at_end": False,
        "feature_views": 2,
    }
    through = make_multilabel_trainer(**overrides)
    through.train()
    again = make_multilabel_trainer(**overrides)
    checkpoint = min(Path(again.args.output_dir).glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    again.train(resume_from_checkpoint=str(checkpoint))
    assert same_weights(through, again)
    rows = [row for row in through.state.log_history if "eval_loss" in row]
    assert rows[-1]["eval_roc_auc"] > rows[0]["eval_roc_auc"] - 0.2
    assert rows[-1]["eval_auc_labels"] == 2


# --- evaluation


def study(n: int = 300, labels: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    groups = np.arange(n) // 2
    has = (rng.random((n // 2, labels)) < np.linspace(0.15, 0.5, labels))[groups]
    probabilities = 1 / (1 + np.exp(-(1.5 * (has - 0.5) + rng.normal(size=(n, labels)))))
    return has, probabilities, groups


def test_validation_metrics_skip_labels_without_both_classes():
    has, probabilities, _ = study()
    has[:, 1] = False
    logits = np.log(probabilities / (1 - probabilities)).astype(np.float32)
    metrics = TASKS["multilabel"].validation_metrics(EvalPrediction(logits, has.astype(np.float32)))
    areas = [roc_auc_score(has[:, k], logits[:, k]) for k in (0, 2)]
    assert metrics["roc_auc"] == pytest.approx(np.mean(areas), abs=1e-6)
    assert metrics["auc_labels"] == 2
    assert all(type(value) is float for value in metrics.values())


def test_intervals_of_means_and_of_each_label():
    has, probabilities, groups = study()
    means, per_label = multilabel_metric_intervals(has, probabilities, groups, [0.5, 0.4, 0.5], resamples=500)
    for k, single in enumerate(per_label):
        assert single["roc_auc"].value == pytest.approx(roc_auc_score(has[:, k], probabilities[:, k]))
        assert single["average_precision"].value == pytest.approx(
            average_precision_score(has[:, k], probabilities[:, k])
        )
        both = np.column_stack([1 - probabilities[:, k], probabilities[:, k]])
        alone = metric_intervals(has[:, k].astype(int), both, groups, 1, [0.5, 0.4, 0.5][k], resamples=500)
        assert {name: interval.value for name, interval in alone.items()} == {
            name: interval.value for name, interval in single.items()
        }
        assert np.allclose(single["roc_auc"], alone["roc_auc"], atol=0.02)  # other bootstrap samples
    for name, interval in means.items():
        assert interval.value == pytest.approx(np.mean([single[name].value for single in per_label])), name
        assert interval.low < interval.high
    auc = means["roc_auc"]
    assert auc.low < auc.value < auc.high
    assert auc.high - auc.low < np.mean([single["roc_auc"].high - single["roc_auc"].low for single in per_label])


def test_mean_of_equal_labels_has_the_interval_of_one():
    """The mean of two copies of a label is as uncertain as the label; separate resampling would narrow its interval."""
    has, probabilities, groups = study(labels=1)
    once, _ = multilabel_metric_intervals(has, probabilities, groups, [0.5], resamples=300)
    twice, _ = multilabel_metric_intervals(
        np.repeat(has, 2, 1), np.repeat(probabilities, 2, 1), groups, [0.5, 0.5], resamples=300
    )
    assert np.allclose(once["roc_auc"], twice["roc_auc"])


def test_intervals_without_errors_are_not_degenerate():
    has, _, groups = study()
    means, per_label = multilabel_metric_intervals(has, has * 0.98 + 0.01, groups, [0.5] * 3, resamples=200)
    for name in ("roc_auc", "sensitivity", "accuracy", "f1", "average_precision"):
        assert means[name].value == pytest.approx(1)
        assert per_label[0][name].low < means[name].low < 0.999


def test_undefined_metric_is_null_with_a_reason():
    has, probabilities, groups = study()
    has[:, 1] = False
    result = multilabel_results(has, probabilities, groups.tolist(), {"a": 0.5, "b": 0.5, "c": 1.1})
    assert result["metrics"]["roc_auc"]["n_labels"] == 2
    undefined = {"value": None, "low": None, "high": None}
    assert result["per_label"]["b"]["metrics"]["roc_auc"] == undefined | {"reason": "no image has it"}
    assert result["per_label"]["c"]["metrics"]["ppv"] == undefined | {"reason": "no image is decided to have it"}
    assert result["per_label"]["a"]["n_positive"] == has[:, 0].sum()
    assert np.sum(result["per_label"]["a"]["confusion_matrix"]) == 300
    assert result["per_label"]["a"]["confusion_matrix"][1][1] == (has[:, 0] & (probabilities[:, 0] >= 0.5)).sum()
    json.dumps(result, allow_nan=False)
    nothing = multilabel_results(np.zeros_like(has), probabilities, groups.tolist(), {"a": 0.5, "b": 0.5, "c": 0.5})
    assert nothing["metrics"]["roc_auc"] == undefined | {"n_labels": 0}


def test_one_temperature_for_all_labels():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3)) * 2
    has = rng.random(logits.shape) < 1 / (1 + np.exp(-logits))
    assert fit_multilabel_temperature(logits * 3, has) == pytest.approx(3, rel=0.05)
    certain = np.where(has, 5.0, -5.0)
    assert fit_multilabel_temperature(certain[:20], has[:20]) > 0.06  # 20 images do not justify more certainty


# --- the whole run

# User code with stock transformers, without hf_medtl.
STOCK_CODE = """
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
def finished_run(multilabel_csv, tiny_checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "marks"
    other = write_table(tmp_path_factory.mktemp("other"), 24, 5000)
    return run(
        Recipe(
            **options(
                multilabel_csv,
                tiny_checkpoint("vit"),
                folder,
                dataset="table",
                num_train_epochs=6,
                learning_rate=2e-3,
                external_dataset="table",
                external_data_dir=str(other),
            )
        )
    )


@pytest.mark.slow
def test_run_folder_is_complete(finished_run):
    result = json.loads((finished_run / "results.json").read_text())
    assert result["labels"] == list(LABELS)
    assert result["metrics"]["roc_auc"]["value"] > 0.8
    config = AutoConfig.from_pretrained(finished_run)
    assert config.problem_type == "multi_label_classification"
    assert list(config.thresholds) == list(LABELS)
    rows = pd.read_csv(finished_run / "predictions.csv", keep_default_na=False)
    assert list(rows.columns) == ["image_id", "label", "group", "p_bar", "p_disc"]
    assert ((rows["p_bar"] > 0.5) & (rows["p_disc"] > 0.5)).any()  # impossible with a softmax
    for label in LABELS:
        label_results = result["per_label"][label]
        has = rows["label"].str.contains(label)
        assert label_results["n_positive"] == has.sum()
        assert label_results["metrics"]["roc_auc"]["value"] == pytest.approx(
            roc_auc_score(has, rows[f"p_{label}"]), abs=1e-9
        )
        assert label_results["threshold"] == config.thresholds[label]
        assert label_results["threshold_fitted"]
    assert result["external"]["n"] == 24
    for name in ("history", "roc", "reliability"):
        Image.open(finished_run / "figures" / f"{name}.png").verify()
    text = (finished_run / "README.md").read_text()
    assert "to find any of bar, disc" in text
    auc = result["per_label"]["bar"]["metrics"]["roc_auc"]
    assert f"{auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]" in text
    assert "| split | bar | disc | (none) | (all) |" in text
    with pytest.raises(MedtlError, match="Only runs with one label per image can be compared"):
        Predictions.read(finished_run)


@pytest.mark.slow
def test_stock_pipeline_gives_the_same_probabilities(stock_pool, finished_run, multilabel_csv):
    process = stock_pool.run_code(STOCK_CODE, finished_run, multilabel_csv.parent)
    assert process.returncode == 0, process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("family", ["timm", "cnn"])
def test_timm_and_cnn_runs_with_an_unfitted_threshold(
    family, stock_pool, multilabel_csv, tiny_checkpoint, tmp_path, capsys, caplog
):
    """The validation split lacks one label; the printed summary names it."""
    rows = pd.read_csv(multilabel_csv, keep_default_na=False)
    split_column = ["train"] * 56 + ["validation"] * 16 + ["test"] * 24
    rows = rows.assign(split=split_column, label=rows["label"] + "|")
    rows.loc[[0, 1, 90], "label"] += "rare"
    (file := multilabel_csv.parent / f"{family}.csv").write_text(rows.drop(columns="patient").to_csv(index=False))
    splits = load("table", file, official_split=False).table
    splits = splits.assign(split=split_column)
    splits.to_csv(tmp_path / "splits.csv", index=False)
    overrides = {"dataset": "table", "splits": str(tmp_path / "splits.csv"), "class_weights": "balanced", "mixup": 0.2}
    with caplog.at_level(logging.WARNING, "hf_medtl"):
        folder = run(Recipe(**options(file, tiny_checkpoint(family), tmp_path / "run", **overrides)))
    assert "No threshold can be fitted for rare" in caplog.text
    result = json.loads((folder / "results.json").read_text())
    assert result["per_label"]["rare"]["threshold"] == 0.5
    assert not result["per_label"]["rare"]["threshold_fitted"]
    assert "0.500 (not fitted)" in (folder / "README.md").read_text()
    output = capsys.readouterr().out
    for word in ("(none)", "means over the labels", "rare"):
        assert word in output
    process = stock_pool.run_code(STOCK_CODE, folder, file.parent, *(["trust"] if family == "cnn" else []))
    assert process.returncode == 0, process.stderr
    # A single-label model initialised from it must not keep the sigmoid.
    recipe = Recipe(**options(file, folder, tmp_path / "next"))
    assert TASKS["classification"].build(recipe, ("a", "b"))[0].config.problem_type is None
