"""Tests of the comparison of finished runs: errors, tests of differences, costs and the page."""

import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import ttest_rel
from torch import nn

from hf_medtl import MedtlError, Recipe, load, run
from hf_medtl.data.dataset import COLUMNS
from hf_medtl.evaluation.intervals import metric_intervals
from hf_medtl.evaluation.significance import auc_difference, holm, mcnemar
from hf_medtl.models.benchmark import count_macs, measure_latencies
from hf_medtl.runs.compare import Comparison, compare_runs, measure_costs
from hf_medtl.runs.compare_page import write_comparison
from hf_medtl.runs.compare_tables import tables
from hf_medtl.training.runtime import EnergyMeter
from tests.support.commands import options, run_cli
from tests.support.killed import leave_killed

NAMES = ("no", "yes")


def predictions(
    seed: int, noise: float, n: int = 60, per_group: int = 1, names: tuple[str, ...] = NAMES
) -> pd.DataFrame:
    """Return predictions.csv of a noisy but correct model; image i is the same for every seed."""
    label = np.arange(n) // per_group % len(names)
    logits = 2.0 * np.eye(len(names))[label] + np.random.default_rng(seed).normal(0, noise, (n, len(names)))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    table = pd.DataFrame({"image_id": [f"{i:03}.png" for i in range(n)], "label": np.array(names)[label],
                          "group": [f"g{i // per_group}" for i in range(n)]})  # fmt: skip
    return table.assign(**{f"p_{name}": p[:, k] for k, name in enumerate(names)})


def write_run(folder: Path, model: Path, table: pd.DataFrame, **result: object) -> Path:
    """Write a finished run with a tiny model's weights."""
    shutil.copytree(model, folder, dirs_exist_ok=True)
    table.to_csv(folder / "predictions.csv", index=False)
    defaults = {"dataset": "brain-phantoms", "task": "image-classification", "split": "test", "labels": list(NAMES),
             "positive_label": "yes", "threshold": 0.5, "train_seconds": 60.0, "peak_memory_mb": 100.0}  # fmt: skip
    (folder / "results.json").write_text(json.dumps(defaults | result))
    return folder


@pytest.fixture
def runs(tiny_checkpoint, tmp_path) -> list[Path]:
    """Write a good, a bad and a middling run; the last has another row order and other group names."""
    shuffled = predictions(3, 1.6).sample(frac=1, random_state=0)
    shuffled["group"] = "patient-" + shuffled["group"]
    return [
        write_run(tmp_path / "good", tiny_checkpoint("cnn"), predictions(1, 0.9)),
        write_run(tmp_path / "bad", tiny_checkpoint("vit"), predictions(2, 3.0), energy_kwh=0.25),
        write_run(tmp_path / "middling", tiny_checkpoint("cnn"), shuffled),
    ]


def difference(comparison: Comparison, run: str, metric: str) -> pd.Series:
    rows = comparison.differences
    return rows[(rows["run"] == run) & (rows["metric"] == metric)].iloc[0]


def test_independent_images_are_compared_by_delong_and_mcnemar_tests(runs):
    comparison = compare_runs(runs)
    assert (comparison.reference, comparison.reference_is_best, list(comparison.runs)) == (
        "good",
        False,
        ["good", "bad", "middling"],
    )
    assert comparison.facts["n"] == comparison.facts["n_groups"] == 60
    read = {name: run.predictions.sort_values("image_id") for name, run in comparison.runs.items()}
    yes, p = read["good"]["label"] == "yes", {name: table["p_yes"].to_numpy() for name, table in read.items()}
    expected = metric_intervals(yes.astype(int), np.column_stack([1 - p["bad"], p["bad"]]), range(60), 1, 0.5)
    rows = comparison.metrics[comparison.metrics["run"] == "bad"].set_index("metric")
    for metric in ("roc_auc", "accuracy", "brier"):
        assert tuple(rows.loc[metric, ["value", "low", "high"]]) == pytest.approx(expected[metric])

    raw = []
    for name in ("bad", "middling"):
        area, right = auc_difference(yes, p[name], p["good"], range(60)), [(p[r] >= 0.5) == yes for r in (name, "good")]
        row = difference(comparison, name, "roc_auc")
        assert tuple(row[["value", "low", "high", "p_value"]]) == pytest.approx(area)
        assert (row["test"], difference(comparison, name, "accuracy")["test"]) == ("DeLong's test", "McNemar's test")
        assert difference(comparison, name, "accuracy")["p_value"] == mcnemar(*right)
        raw += [area.p_value, mcnemar(*right)]
    corrected = [
        difference(comparison, name, metric)["p_holm"]
        for name in ("bad", "middling")
        for metric in ("roc_auc", "accuracy")
    ]
    assert corrected == pytest.approx(holm(raw))
    assert comparison.facts["n_tests"] == 4
    untested = comparison.differences[~comparison.differences["metric"].isin(["roc_auc", "accuracy"])]
    assert untested["p_value"].isna().all() and not untested["test"].any() and untested["low"].notna().all()
    assert "ece" not in set(comparison.differences["metric"])

    shutil.copytree(runs[0], runs[0].parent / "twin")
    rows = compare_runs([runs[0], runs[0].parent / "twin"]).differences
    assert (rows["value"] == 0).all() and rows["low"].isna().all()  # the interval is undefined
    assert rows.loc[rows["test"] != "", "p_value"].tolist() == [1, 1]


def test_metrics_equal_those_of_results_json(finished_run, results, tmp_path):
    again = shutil.copytree(finished_run, tmp_path / "again")
    comparison = compare_runs([finished_run, again])
    for row in comparison.metrics.itertuples():
        assert row.value == pytest.approx(results["metrics"][row.metric]["value"], nan_ok=True)
    costs = measure_costs(comparison.runs, None)
    assert costs.table["parameters"].nunique() == 1
    assert comparison.disagreements.empty
    row = difference(comparison, "again", "roc_auc")
    assert (row["value"], row["p_value"]) == (0, 1)
    assert math.isnan(row["low"])
    write_comparison(comparison, costs, tmp_path / "out")
    assert "disagree on 0 of" in (tmp_path / "out" / "README.md").read_text()


def test_copies_in_a_group_do_not_narrow_intervals(tiny_checkpoint, tmp_path):
    predicted = [predictions(seed, noise) for seed, noise in ((1, 0.9), (2, 3.0))]
    single = [write_run(tmp_path / f"single{i}", tiny_checkpoint("cnn"), table) for i, table in enumerate(predicted)]
    copies = [
        write_run(
            tmp_path / f"copies{i}",
            tiny_checkpoint("cnn"),
            pd.concat([table, table.assign(image_id="x" + table["image_id"])]),
        )
        for i, table in enumerate(predicted)
    ]
    once, twice = compare_runs(single, ["brier"]), compare_runs(copies)
    assert {row["test"] for row in twice.differences.to_dict("records") if row["test"]} == {
        "paired jackknife over groups with Student's t"
    }
    for key in ("value", "low", "high"):
        assert difference(twice, "copies1", "brier")[key] == pytest.approx(difference(once, "single1", "brier")[key])
    assert once.facts["n_tests"] == 1
    listed = tables(twice, measure_costs(twice.runs, None))["disagreements"]["image"]
    assert not listed.str.startswith("x").any()  # one image per group


def test_reference_by_name_folder_or_best(runs):
    assert compare_runs(runs, reference="bad").reference == "bad"
    comparison = compare_runs(runs[::-1], ["brier"], "best")
    assert (comparison.reference, comparison.reference_is_best) == ("good", True)
    assert compare_runs(runs, reference=str(runs[2])).reference == "middling"
    with pytest.raises(MedtlError, match="--reference must be best or one of good, bad, middling, but is 'worse'"):
        compare_runs(runs, reference="worse")


def test_rejects_runs_that_cannot_be_compared(runs, tiny_checkpoint, tmp_path):
    def assert_rejected(message: str, *folders: Path, metrics: tuple[str, ...] = ()) -> None:
        with pytest.raises(MedtlError, match=message):
            compare_runs(folders, metrics)

    table, model = predictions(1, 0.9), tiny_checkpoint("cnn")
    smaller = write_run(tmp_path / "other", model, table.iloc[3:])
    assert_rejected("good and other were not tested on the same images: 3 of 60 are only in good, 0 of 57.*--splits",
            runs[0], smaller)  # fmt: skip
    grouped = write_run(tmp_path / "grouped", model, table.assign(group="g"))
    assert_rejected("good and grouped disagree about the group of 59 images, such as 001.png", runs[0], grouped)
    turned = write_run(tmp_path / "turned", model, table, positive_label="no")
    assert_rejected("different positive labels, yes and no", runs[0], turned)
    named = write_run(tmp_path / "named", model, table.rename(columns={"p_yes": "p_si"}).replace("yes", "si"),
                 labels=["no", "si"], positive_label="si")  # fmt: skip
    assert_rejected("good and named have different labels: no, yes and no, si", runs[0], named)
    assert_rejected("but got 1", runs[0])
    assert_rejected("given twice", runs[0], runs[0])
    masks = write_run(tmp_path / "masks", model, mask_predictions(0, 0), task="image-segmentation")
    assert_rejected("good and masks have different tasks", runs[0], masks)
    assert_rejected("--metric must be one of accuracy.*is dice", *runs, metrics=("dice",))
    assert_rejected("use brier", *runs, metrics=("ece",))
    (runs[1] / "UNFINISHED").touch()
    assert_rejected("bad is not a finished run", *runs)


def test_rejects_images_with_equal_names_but_different_contents(runs):
    for folder, sha256 in zip(runs[:2], ("a", "b"), strict=True):
        table = predictions(1, 1)[["image_id"]].assign(path="p", sha256=sha256)
        table.to_csv(folder / "splits.csv", index=False)
    with pytest.raises(MedtlError, match="disagree about the sha256 of 60 images"):
        compare_runs(runs[:2])


def test_folds_use_their_own_thresholds(tiny_checkpoint, tmp_path):
    for name, seed in (("one", 1), ("two", 2)):
        table = predictions(seed, 2.0).assign(fold=np.arange(60) % 2)
        cuts = (0.5, 1.0)  # the second fold's model never decides yes
        folds = [
            write_run(tmp_path / name / f"fold-{k}", tiny_checkpoint("cnn"), table[table["fold"] == k], threshold=cut)
            for k, cut in enumerate(cuts)
        ]
        write_run(
            folds[0].parent,
            tiny_checkpoint("cnn"),
            table,
            threshold=None,
            split="out-of-fold",
            folds=[{"fold": 0}, {"fold": 1}],
        )
    comparison = compare_runs([tmp_path / "one", tmp_path / "two"])
    rows = comparison.metrics[comparison.metrics["metric"] == "accuracy"].set_index("run")
    table = predictions(1, 2.0)
    correct = (table["p_yes"] >= np.where(np.arange(60) % 2, 1.0, 0.5)) == (table["label"] == "yes")
    assert rows.loc["one", "value"] == pytest.approx(correct.mean())
    assert comparison.facts["folds"] == 2
    costs = measure_costs(comparison.runs, None)
    assert "training of all folds, minutes" in set(tables(comparison, costs)["costs"]["cost"])
    shutil.rmtree(tmp_path / "two" / "fold-1")
    with pytest.raises(MedtlError, match="fold-1 is not a finished run"):
        compare_runs([tmp_path / "one", tmp_path / "two"])


def test_multiclass_runs_are_compared_by_jackknife_and_mcnemar(tiny_checkpoint, tmp_path):
    names = ("a", "b", "c")
    folders = [
        write_run(tmp_path / f"run{seed}", tiny_checkpoint("cnn"), predictions(seed, noise, names=names), labels=names,
             positive_label=None, threshold=None)
        for seed, noise in ((1, 1.0), (2, 2.5))
    ]  # fmt: skip
    comparison = compare_runs(folders)
    assert difference(comparison, "run2", "roc_auc")["test"] == "paired jackknife over groups with Student's t"
    assert difference(comparison, "run2", "accuracy")["test"] == "McNemar's test"
    class_metrics = comparison.parts[comparison.parts["run"] == "run2"].set_index(["part", "metric"])["value"]
    table = predictions(2, 2.5, names=names)
    decided = np.array(names)[table[["p_a", "p_b", "p_c"]].to_numpy().argmax(axis=1)]
    assert class_metrics["c", "sensitivity"] == pytest.approx((decided == "c")[table["label"] == "c"].mean())
    largest = comparison.disagreements.iloc[0]
    assert largest["gap"] == comparison.disagreements["gap"].max()
    assert set(largest["answers"]) == {"run1", "run2"}
    decided_by_first = np.array(names)[
        predictions(1, 1.0, names=names)[["p_a", "p_b", "p_c"]].to_numpy().argmax(axis=1)
    ]
    assert set(comparison.disagreements["image_id"]) == set(table["image_id"][decided != decided_by_first])


def test_multilabel_runs_are_compared_by_mean_and_label(tiny_checkpoint, tmp_path):
    rng = np.random.default_rng(0)
    has = rng.random((60, 2)) < 0.4
    cells = ["|".join(name for name, present in zip(("a", "b"), row, strict=True) if present) for row in has]
    table = predictions(0, 1)[["image_id", "group"]].assign(label=cells)
    folders = []
    for name, noise in (("one", 0.2), ("two", 0.6)):
        probabilities = np.clip(0.5 * has + 0.25 + rng.normal(0, noise, has.shape), 0.01, 0.99)
        per_label = {label: {"threshold": 0.5} for label in "ab"}
        folders.append(write_run(tmp_path / name, tiny_checkpoint("cnn"),
                                 table.assign(p_a=probabilities[:, 0], p_b=probabilities[:, 1]),
                                 labels=["a", "b"], positive_label=None, threshold=None,
                                 per_label=per_label))  # fmt: skip
    comparison = compare_runs(folders)
    row, metrics = difference(comparison, "two", "roc_auc"), comparison.metrics
    values = metrics[metrics["metric"] == "roc_auc"]["value"].tolist()
    assert row["value"] == pytest.approx(values[1] - values[0])
    assert row["low"] < row["value"] < row["high"] < 0.05
    assert set(comparison.parts["part"]) == {"a", "b"}


def mask_predictions(seed: int, shift: float, n: int = 40) -> pd.DataFrame:
    """Return predictions.csv of a segmentation run; some images are hard for every model."""
    dice = 0.85 - np.random.default_rng(99).uniform(0, 0.3, n) + shift
    dice += np.random.default_rng(seed).normal(0, 0.01, n)
    return pd.DataFrame({"image_id": [f"{i:03}" for i in range(n)], "label": "x", "group": [f"p{i}" for i in range(n)],
                         "source": "s", "dice": dice, "iou": dice / (2 - dice), "precision": dice, "recall": dice,
                         "hausdorff95": 20 - 10 * dice})  # fmt: skip


def test_segmentation_runs_are_compared_by_paired_t_test(tiny_checkpoint, tmp_path):
    results = {
        "task": "image-segmentation",
        "labels": ["background", "lung"],
        "positive_label": None,
        "threshold": None,
    }
    folders = [
        write_run(tmp_path / f"run{i}", tiny_checkpoint("cnn"), mask_predictions(i, shift), **results)
        for i, shift in ((0, 0.02), (1, 0.0))
    ]
    comparison = compare_runs(folders)
    both = [pd.read_csv(folder / "predictions.csv")["dice"] for folder in folders]
    classic = ttest_rel(both[1], both[0])
    row, limits = difference(comparison, "run1", "dice"), classic.confidence_interval(0.95)
    assert tuple(row[["low", "high", "p_value"]]) == pytest.approx((limits.low, limits.high, classic.pvalue), rel=1e-3)
    assert comparison.facts["tested"] == ["dice", "iou"]
    assert len(comparison.disagreements) == 40
    assert comparison.disagreements["gap"].is_monotonic_decreasing
    write_comparison(comparison, measure_costs(comparison.runs, None), tmp_path / "out")
    assert "runs' Dice differs most" in (tmp_path / "out" / "README.md").read_text()
    best = compare_runs(folders, ["hausdorff95"], "best")
    assert best.reference == "run0"


@pytest.fixture
def runs_with_images(phantoms, tiny_checkpoint, tmp_path) -> list[Path]:
    """Write two runs whose test images are available."""
    loaded, rng = load("brain-phantoms", phantoms, seed=1), np.random.default_rng(0)
    table = loaded.table[loaded.table["split"] == "test"]
    folders = []
    for name, family in (("cnn", "cnn"), ("vit", "vit")):
        p = rng.uniform(0.01, 0.99, len(table))
        rows = table[["image_id", "label", "group"]].assign(p_no_lesion=1 - p, p_lesion=p)
        folders.append(
            write_run(
                tmp_path / name, tiny_checkpoint(family), rows, labels=["no_lesion", "lesion"], positive_label="lesion"
            )
        )
        loaded.table[COLUMNS].to_csv(folders[-1] / "splits.csv", index=False)
    return folders


@pytest.mark.slow
def test_command_writes_a_page(runs_with_images, phantoms, tmp_path):
    printed = run_cli(
        "compare",
        *runs_with_images,
        "--out",
        leave_killed(tmp_path / "out"),
        "--data_dir",
        phantoms,
        "--reference",
        "best",
        "--metric",
        "accuracy",
    )
    assert "corrected" in printed and "Holm" in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "comparison.json", "figures"}
    text, content = ((tmp_path / "out" / name).read_text() for name in ("README.md", "comparison.json"))
    for path in (str(tmp_path), str(phantoms)):
        assert path not in text + content
    saved = json.loads(content)
    assert saved["runs"] == ["cnn", "vit"]
    assert saved["n_tests"] == 1
    assert saved["latency_measured_on"].startswith("CPU")
    assert all(row["latency_ms"] > 0 for row in saved["costs"])
    assert "1 comparison together" in text and "chosen because it is the best" in text
    assert "paired jackknife" in text  # two slices per patient, which McNemar's test would treat as independent
    assert "Not a medical device" in text
    assert {path.name for path in (tmp_path / "out" / "figures").iterdir()} == {
        "intervals.png", "pareto.png", "parts.png", "disagreements.png"}  # fmt: skip
    run_cli("compare", *runs_with_images, "--out", tmp_path / "out", "--no_latency")  # again, in its own folder
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Give --data_dir to see the images" in text and "disagreements.png" not in text
    assert "| one image, ms [quartiles] | – | – |" in text
    with pytest.raises(MedtlError, match="is not empty and holds no comparison"):
        run_cli("compare", *runs_with_images, "--out", runs_with_images[0])


@pytest.mark.slow
def test_images_of_other_data_are_not_shown(runs_with_images, phantoms, tmp_path):
    comparison = compare_runs(runs_with_images)
    costs = measure_costs(comparison.runs, None)
    assert "cannot be shown" in write_comparison(comparison, costs, tmp_path / "out", tmp_path / "nowhere")
    changed = shutil.copytree(phantoms, tmp_path / "changed")
    for path in changed.rglob("*.png"):
        path.write_bytes(path.read_bytes() + b"\0")
    assert "has other contents than in the run" in write_comparison(comparison, costs, tmp_path / "out", changed)
    assert "cannot be shown" in (tmp_path / "out" / "README.md").read_text()


def test_unknown_costs_are_a_dash(runs):
    comparison = compare_runs(runs)
    costs = measure_costs(comparison.runs, None)
    table = tables(comparison, costs)["costs"].set_index("cost")
    assert table.loc["energy of training, kWh"].tolist() == ["–", "0.25", "–"]
    assert table.loc["training, minutes"].tolist() == ["1.0"] * 3
    assert table.loc["trained on"].tolist() == ["–"] * 3
    assert table.loc["one image, ms [quartiles]"].tolist() == ["–"] * 3
    size = (runs[1] / "model.safetensors").stat().st_size
    assert costs.table.loc["bad", "weights_mb"] == size / 1e6


@pytest.fixture
def meters(monkeypatch) -> list[SimpleNamespace]:
    """Replace codecarbon, which takes seconds to inspect the machine; return the trackers that are created."""
    trackers = []

    class Tracker(SimpleNamespace):
        def start(self) -> None:
            trackers.append(self)

        def stop(self) -> None:
            self.final_emissions_data = SimpleNamespace(energy_consumed=0.5)

    monkeypatch.setitem(sys.modules, "codecarbon", SimpleNamespace(OfflineEmissionsTracker=Tracker))
    return trackers


@pytest.mark.slow
def test_records_energy_with_codecarbon(meters, phantoms, tiny_checkpoint, tmp_path):
    overrides = {"num_train_epochs": 1, "folds": 2}
    folder = run(Recipe(**options(phantoms, tiny_checkpoint("cnn"), tmp_path / "run", **overrides)))
    assert [json.loads((folder / part / "results.json").read_text())["energy_kwh"] for part in ("fold-0", ".")] == [
        0.5,
        1,
    ]
    assert [tracker.output_methods for tracker in meters] == [[], []]  # no file, no upload
    with EnergyMeter(Recipe(**options(phantoms, tiny_checkpoint("cnn"), tmp_path / "other")), resumed=True) as meter:
        assert len(meters) == 2
    assert meter.kwh is None  # the energy before the resume is unknown


def test_records_no_energy_without_codecarbon(monkeypatch, phantoms, tiny_checkpoint, tmp_path):
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with EnergyMeter(Recipe(**options(phantoms, tiny_checkpoint("cnn"), tmp_path / "run")), resumed=False) as meter:
        assert meter.tracker is None
    assert meter.kwh is None


class Layers(nn.Module):
    """A convolution and a linear layer with a known number of operations; logs its calls."""

    def __init__(self, name: str, log: list[str]) -> None:
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)
        self.name, self.log = name, log

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        self.log.append(self.name)
        return self.linear(self.convolution(pixel_values).mean((2, 3)))


def test_counts_macs_and_alternates_latency_measurements():
    log: list[str] = []
    models, inputs = [Layers("a", log).eval(), Layers("b", log).eval()], {"pixel_values": torch.zeros(1, 3, 8, 8)}
    assert count_macs(models[0], inputs) == 8 * 8 * 4 * 3 * 9 + 4 * 5
    log.clear()
    latencies = measure_latencies(models, [inputs, inputs], repeats=4)
    assert log == ["a", "b"] * 7  # three warm-up rounds
    assert all(0 < x.lower <= x.median <= x.upper for x in latencies)
