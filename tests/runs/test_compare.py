"""Finished runs side by side: what is refused, how differences are tested, what it costs, and the page."""

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
from hf_medtl.data.loading import COLUMNS
from hf_medtl.evaluation.intervals import metric_intervals
from hf_medtl.evaluation.significance import auc_difference, holm, mcnemar
from hf_medtl.models.benchmark import count_macs, measure_latencies
from hf_medtl.runs.compare import Comparison, comparison
from hf_medtl.runs.compare_page import tables, write_comparison
from hf_medtl.training.runtime import Meter
from tests.support.commands import options, typed

NAMES = ("no", "yes")


def answers(seed: int, noise: float, n: int = 60, per_group: int = 1, names: tuple[str, ...] = NAMES) -> pd.DataFrame:
    """predictions.csv of a model that is right but for noise; picture i is the same with every seed."""
    label = np.arange(n) // per_group % len(names)
    logits = 2.0 * np.eye(len(names))[label] + np.random.default_rng(seed).normal(0, noise, (n, len(names)))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    table = pd.DataFrame({"image_id": [f"{i:03}.png" for i in range(n)], "label": np.array(names)[label],
                          "group": [f"g{i // per_group}" for i in range(n)]})  # fmt: skip
    return table.assign(**{f"p_{name}": p[:, k] for k, name in enumerate(names)})


def made(folder: Path, model: Path, table: pd.DataFrame, **result: object) -> Path:
    """The folder of a finished run with a tiny model's weights."""
    shutil.copytree(model, folder, dirs_exist_ok=True)
    table.to_csv(folder / "predictions.csv", index=False)
    usual = {"dataset": "brain-phantoms", "task": "image-classification", "split": "test", "labels": list(NAMES),
             "positive_label": "yes", "threshold": 0.5, "train_seconds": 60.0, "peak_memory_mb": 100.0}  # fmt: skip
    (folder / "results.json").write_text(json.dumps(usual | result))
    return folder


@pytest.fixture
def runs(tiny, tmp_path) -> list[Path]:
    """A good model, a bad one and one in between; the last has its rows in another order and groups of other names."""
    shuffled = answers(3, 1.6).sample(frac=1, random_state=0)
    shuffled["group"] = "patient-" + shuffled["group"]
    return [
        made(tmp_path / "good", tiny("cnn"), answers(1, 0.9)),
        made(tmp_path / "bad", tiny("vit"), answers(2, 3.0), energy_kwh=0.25),
        made(tmp_path / "middling", tiny("cnn"), shuffled),
    ]


def one(found: Comparison, run: str, metric: str) -> pd.Series:
    rows = found.differences
    return rows[(rows["run"] == run) & (rows["metric"] == metric)].iloc[0]


def test_metrics_and_tests_of_independent_pictures(runs):
    found = comparison(runs, latency=False)
    assert (found.reference, found.chosen, list(found.runs)) == ("good", False, ["good", "bad", "middling"])
    assert found.facts["n"] == found.facts["n_groups"] == 60
    read = {
        name: pd.read_csv(folder / "predictions.csv").sort_values("image_id") for name, folder in found.runs.items()
    }
    yes, p = read["good"]["label"] == "yes", {name: table["p_yes"].to_numpy() for name, table in read.items()}
    its = metric_intervals(yes.astype(int), np.column_stack([1 - p["bad"], p["bad"]]), range(60), 1, 0.5)
    rows = found.metrics[found.metrics["run"] == "bad"].set_index("metric")
    for metric in ("roc_auc", "accuracy", "brier"):
        assert tuple(rows.loc[metric, ["value", "low", "high"]]) == pytest.approx(its[metric])

    raw = []
    for name in ("bad", "middling"):
        area, right = auc_difference(yes, p[name], p["good"], range(60)), [(p[r] >= 0.5) == yes for r in (name, "good")]
        row = one(found, name, "roc_auc")
        assert tuple(row[["value", "low", "high", "p_value"]]) == pytest.approx(area)
        assert (row["test"], one(found, name, "accuracy")["test"]) == ("DeLong's test", "McNemar's test")
        assert one(found, name, "accuracy")["p_value"] == mcnemar(*right)
        raw += [area.p_value, mcnemar(*right)]
    corrected = [
        one(found, name, metric)["p_holm"] for name in ("bad", "middling") for metric in ("roc_auc", "accuracy")
    ]
    assert corrected == pytest.approx(holm(raw))
    assert found.facts["n_tests"] == 4
    others = found.differences[~found.differences["metric"].isin(["roc_auc", "accuracy"])]
    assert others["p_value"].isna().all() and not others["test"].any() and others["low"].notna().all()
    assert "ece" not in set(found.differences["metric"])

    shutil.copytree(runs[0], runs[0].parent / "twin")
    rows = comparison([runs[0], runs[0].parent / "twin"], latency=False).differences
    assert (rows["value"] == 0).all() and rows["low"].isna().all()  # never to differ here is not never to differ
    assert rows.loc[rows["test"] != "", "p_value"].tolist() == [1, 1]


def test_metrics_are_those_of_the_runs_own_results(finished, results, tmp_path):
    again = shutil.copytree(finished, tmp_path / "again")
    found = comparison([finished, again], latency=False)
    for row in found.metrics.itertuples():
        assert row.value == pytest.approx(results["metrics"][row.metric]["value"], nan_ok=True)
    assert found.costs["parameters"].nunique() == 1
    assert found.disagreements.empty
    row = one(found, "again", "roc_auc")
    assert (row["value"], row["p_value"]) == (0, 1)
    assert math.isnan(row["low"])
    write_comparison(found, tmp_path / "out")
    assert "On 0 of" in (tmp_path / "out" / "README.md").read_text()


def test_several_pictures_a_group_are_no_more_evidence(tiny, tmp_path):
    every = [answers(seed, noise) for seed, noise in ((1, 0.9), (2, 3.0))]
    single = [made(tmp_path / f"single{i}", tiny("cnn"), table) for i, table in enumerate(every)]
    copies = [
        made(tmp_path / f"copies{i}", tiny("cnn"), pd.concat([table, table.assign(image_id="x" + table["image_id"])]))
        for i, table in enumerate(every)
    ]
    once, twice = comparison(single, ["brier"], latency=False), comparison(copies, latency=False)
    assert {row["test"] for row in twice.differences.to_dict("records") if row["test"]} == {
        "paired jackknife over groups with Student's t"
    }
    for key in ("value", "low", "high"):
        assert one(twice, "copies1", "brier")[key] == pytest.approx(one(once, "single1", "brier")[key])
    assert once.facts["n_tests"] == 1
    assert not tables(twice)["disagreements"]["picture"].str.startswith("x").any()  # a copy shows nothing new


def test_reference(runs):
    assert comparison(runs, reference="bad", latency=False).reference == "bad"
    found = comparison(runs[::-1], ["brier"], "best", latency=False)
    assert (found.reference, found.chosen) == ("good", True)
    assert comparison(runs, reference=str(runs[2]), latency=False).reference == "middling"
    with pytest.raises(MedtlError, match="--reference is best or one of good, bad, middling; found 'worse'"):
        comparison(runs, reference="worse", latency=False)


def test_what_can_not_be_compared_says_why(runs, tiny, tmp_path):
    def refused(words: str, *folders: Path, metrics: tuple[str, ...] = ()) -> None:
        with pytest.raises(MedtlError, match=words):
            comparison(folders, metrics, latency=False)

    table, model = answers(1, 0.9), tiny("cnn")
    other = made(tmp_path / "other", model, table.iloc[3:])
    refused("good and other were not tested on the same pictures: 3 of 60 are only in good, 0 of 57.*--splits",
            runs[0], other)  # fmt: skip
    grouped = made(tmp_path / "grouped", model, table.assign(group="g"))
    refused("good and grouped disagree about the group of 59 pictures, such as 001.png", runs[0], grouped)
    turned = made(tmp_path / "turned", model, table, positive_label="no")
    refused("other positive labels, yes and no", runs[0], turned)
    named = made(tmp_path / "named", model, table.rename(columns={"p_yes": "p_si"}).replace("yes", "si"),
                 labels=["no", "si"], positive_label="si")  # fmt: skip
    refused("good and named have other labels: no, yes and no, si", runs[0], named)
    refused("found 1", runs[0])
    refused("found 1", runs[0], runs[0])
    masks = made(tmp_path / "masks", model, measured(0, 0), task="image-segmentation")
    refused("good and masks are of other tasks", runs[0], masks)
    refused("--metric is one of accuracy.*found dice", *runs, metrics=("dice",))
    refused("take brier", *runs, metrics=("ece",))
    (runs[1] / "UNFINISHED").touch()
    refused("bad is not a finished run", *runs)


def test_pictures_of_one_name_and_other_contents(runs):
    for folder, sha256 in zip(runs[:2], ("a", "b"), strict=True):
        table = answers(1, 1)[["image_id"]].assign(path="p", sha256=sha256)
        table.to_csv(folder / "splits.csv", index=False)
    with pytest.raises(MedtlError, match="disagree about the sha256 of 60 pictures"):
        comparison(runs[:2], latency=False)


def test_folds_are_decided_with_thresholds_of_their_own(tiny, tmp_path):
    for name, seed in (("one", 1), ("two", 2)):
        table = answers(seed, 2.0).assign(fold=np.arange(60) % 2)
        cuts = (0.5, 1.0)  # the second fold's model never says yes
        folds = [made(tmp_path / name / f"fold-{k}", tiny("cnn"), table[table["fold"] == k], threshold=cut)
                 for k, cut in enumerate(cuts)]  # fmt: skip
        made(folds[0].parent, tiny("cnn"), table, threshold=None, split="out-of-fold", folds=[{"fold": 0}, {"fold": 1}])
    found = comparison([tmp_path / "one", tmp_path / "two"], latency=False)
    rows = found.metrics[found.metrics["metric"] == "accuracy"].set_index("run")
    table = answers(1, 2.0)
    said = (table["p_yes"] >= np.where(np.arange(60) % 2, 1.0, 0.5)) == (table["label"] == "yes")
    assert rows.loc["one", "value"] == pytest.approx(said.mean())
    assert found.facts["folds"] == 2
    assert "training of all folds, minutes" in set(tables(found)["costs"]["cost"])
    shutil.rmtree(tmp_path / "two" / "fold-1")
    with pytest.raises(MedtlError, match="fold-1 is not a finished run"):
        comparison([tmp_path / "one", tmp_path / "two"], latency=False)


def test_three_labels(tiny, tmp_path):
    names = ("a", "b", "c")
    folders = [
        made(tmp_path / f"run{seed}", tiny("cnn"), answers(seed, noise, names=names), labels=names,
             positive_label=None, threshold=None)
        for seed, noise in ((1, 1.0), (2, 2.5))
    ]  # fmt: skip
    found = comparison(folders, latency=False)
    assert one(found, "run2", "roc_auc")["test"] == "paired jackknife over groups with Student's t"
    assert one(found, "run2", "accuracy")["test"] == "McNemar's test"
    parts = found.parts[found.parts["run"] == "run2"].set_index(["part", "metric"])["value"]
    table = answers(2, 2.5, names=names)
    decided = np.array(names)[table[["p_a", "p_b", "p_c"]].to_numpy().argmax(axis=1)]
    assert parts["c", "sensitivity"] == pytest.approx((decided == "c")[table["label"] == "c"].mean())
    first = found.disagreements.iloc[0]
    assert first["gap"] == found.disagreements["gap"].max()
    assert set(first["answers"]) == {"run1", "run2"}
    other = np.array(names)[answers(1, 1.0, names=names)[["p_a", "p_b", "p_c"]].to_numpy().argmax(axis=1)]
    assert set(found.disagreements["image_id"]) == set(table["image_id"][decided != other])


def test_several_labels_a_picture(tiny, tmp_path):
    rng = np.random.default_rng(0)
    has = rng.random((60, 2)) < 0.4
    cells = ["|".join(name for name, its in zip(("a", "b"), row, strict=True) if its) for row in has]
    table = answers(0, 1)[["image_id", "group"]].assign(label=cells)
    folders = []
    for name, noise in (("one", 0.2), ("two", 0.6)):
        chances = np.clip(0.5 * has + 0.25 + rng.normal(0, noise, has.shape), 0.01, 0.99)
        per_label = {label: {"threshold": 0.5} for label in "ab"}
        folders.append(made(tmp_path / name, tiny("cnn"), table.assign(p_a=chances[:, 0], p_b=chances[:, 1]),
                            labels=["a", "b"], positive_label=None, threshold=None, per_label=per_label))  # fmt: skip
    found = comparison(folders, latency=False)
    row, values = one(found, "two", "roc_auc"), found.metrics[found.metrics["metric"] == "roc_auc"]["value"].tolist()
    assert row["value"] == pytest.approx(values[1] - values[0])
    assert row["low"] < row["value"] < row["high"] < 0.05
    assert set(found.parts["part"]) == {"a", "b"}


def measured(seed: int, shift: float, n: int = 40) -> pd.DataFrame:
    """predictions.csv of masks, some of which are hard for every model."""
    dice = 0.85 - np.random.default_rng(99).uniform(0, 0.3, n) + shift
    dice += np.random.default_rng(seed).normal(0, 0.01, n)
    return pd.DataFrame({"image_id": [f"{i:03}" for i in range(n)], "label": "x", "group": [f"p{i}" for i in range(n)],
                         "source": "s", "dice": dice, "iou": dice / (2 - dice), "precision": dice, "recall": dice,
                         "hausdorff95": 20 - 10 * dice})  # fmt: skip


def test_masks(tiny, tmp_path):
    more = {"task": "image-segmentation", "labels": ["background", "lung"], "positive_label": None, "threshold": None}
    folders = [
        made(tmp_path / f"run{i}", tiny("cnn"), measured(i, shift), **more) for i, shift in ((0, 0.02), (1, 0.0))
    ]
    found = comparison(folders, latency=False)
    both = [pd.read_csv(folder / "predictions.csv")["dice"] for folder in folders]
    classic = ttest_rel(both[1], both[0])
    row, limits = one(found, "run1", "dice"), classic.confidence_interval(0.95)
    assert tuple(row[["low", "high", "p_value"]]) == pytest.approx((limits.low, limits.high, classic.pvalue), rel=1e-3)
    assert found.facts["tested"] == ["dice", "iou"]
    assert len(found.disagreements) == 40
    assert found.disagreements["gap"].is_monotonic_decreasing
    write_comparison(found, tmp_path / "out")
    assert "runs' Dice differs most" in (tmp_path / "out" / "README.md").read_text()
    best = comparison(folders, ["hausdorff95"], "best", latency=False)
    assert best.reference == "run0"


@pytest.fixture
def seen(phantoms, tiny, tmp_path) -> list[Path]:
    """Runs whose test pictures are there to be seen."""
    loaded, rng = load("brain-phantoms", phantoms, seed=1), np.random.default_rng(0)
    table = loaded.table[loaded.table["split"] == "test"]
    folders = []
    for name, family in (("cnn", "cnn"), ("vit", "vit")):
        p = rng.uniform(0.01, 0.99, len(table))
        rows = table[["image_id", "label", "group"]].assign(p_no_lesion=1 - p, p_lesion=p)
        folders.append(
            made(tmp_path / name, tiny(family), rows, labels=["no_lesion", "lesion"], positive_label="lesion")
        )
        loaded.table[COLUMNS].to_csv(folders[-1] / "splits.csv", index=False)
    return folders


def test_the_command_writes_a_page(seen, phantoms, tmp_path):
    printed = typed("compare", *seen, "--out", tmp_path / "out", "--data_dir", phantoms, "--reference", "best",
                    "--metric", "accuracy")  # fmt: skip
    assert "corrected" in printed and "Holm" in printed
    text, found = ((tmp_path / "out" / name).read_text() for name in ("README.md", "comparison.json"))
    for place in (str(tmp_path), str(phantoms)):
        assert place not in text + found
    found = json.loads(found)
    assert found["runs"] == ["cnn", "vit"]
    assert found["n_tests"] == 1
    assert found["latency_measured_on"].startswith("CPU")
    assert all(row["latency_ms"] > 0 for row in found["costs"])
    assert "1 comparison together" in text and "chosen because it is the best" in text
    assert "paired jackknife" in text  # two slices a patient: McNemar's test would take them for independent
    assert "Not a medical device" in text
    assert {path.name for path in (tmp_path / "out" / "figures").iterdir()} == {
        "intervals.png", "pareto.png", "parts.png", "disagreements.png"}  # fmt: skip
    typed("compare", *seen, "--out", tmp_path / "out", "--no_latency")  # again, in its own folder
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Give --data_dir to see the pictures" in text and "disagreements.png" not in text
    assert "| one picture, ms [quartiles] | – | – |" in text
    with pytest.raises(MedtlError, match="something else than a comparison"):
        typed("compare", *seen, "--out", seen[0])


def test_pictures_that_are_not_the_runs_own_are_not_shown(seen, phantoms, tmp_path):
    found = comparison(seen, latency=False)
    assert "can't be shown" in write_comparison(found, tmp_path / "out", tmp_path / "nowhere")
    changed = shutil.copytree(phantoms, tmp_path / "changed")
    for path in changed.rglob("*.png"):
        path.write_bytes(path.read_bytes() + b"\0")
    assert "has other contents than in the run" in write_comparison(found, tmp_path / "out", changed)
    assert "can't be shown" in (tmp_path / "out" / "README.md").read_text()


def test_costs_are_known_or_a_dash(runs):
    found = comparison(runs, latency=False)
    table = tables(found)["costs"].set_index("cost")
    assert table.loc["energy of training, kWh"].tolist() == ["–", "0.25", "–"]
    assert table.loc["training, minutes"].tolist() == ["1.0"] * 3
    assert table.loc["trained on"].tolist() == ["–"] * 3
    assert table.loc["one picture, ms [quartiles]"].tolist() == ["–"] * 3
    size = (runs[1] / "model.safetensors").stat().st_size
    assert found.costs.loc["bad", "weights_mb"] == size / 1e6


@pytest.fixture
def meters(monkeypatch) -> list[SimpleNamespace]:
    """In place of codecarbon, which takes seconds to look at the machine: the trackers that were made."""
    made = []

    class Tracker(SimpleNamespace):
        def start(self) -> None:
            made.append(self)

        def stop(self) -> None:
            self.final_emissions_data = SimpleNamespace(energy_consumed=0.5)

    monkeypatch.setitem(sys.modules, "codecarbon", SimpleNamespace(OfflineEmissionsTracker=Tracker))
    return made


def test_energy_is_recorded_where_codecarbon_is(meters, phantoms, tiny, tmp_path):
    few = {"num_train_epochs": 1, "folds": 2}
    folder = run(Recipe(**options(phantoms, tiny("cnn"), tmp_path / "run", **few)))
    assert [json.loads((folder / part / "results.json").read_text())["energy_kwh"] for part in ("fold-0", ".")] == [
        0.5,
        1,
    ]
    assert [its.output_methods for its in meters] == [[], []]  # it writes no file and sends nothing
    with Meter(Recipe(**options(phantoms, tiny("cnn"), tmp_path / "other")), resumed=True) as meter:
        assert len(meters) == 2
    assert meter.kwh is None  # what went before the resume is not known


def test_no_energy_without_codecarbon(monkeypatch, phantoms, tiny, tmp_path):
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with Meter(Recipe(**options(phantoms, tiny("cnn"), tmp_path / "run")), resumed=False) as meter:
        assert meter.tracker is None
    assert meter.kwh is None


class Layers(nn.Module):
    """A convolution and a linear layer, with known work; writes down when it runs."""

    def __init__(self, name: str, log: list[str]) -> None:
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)
        self.name, self.log = name, log

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        self.log.append(self.name)
        return self.linear(self.convolution(pixel_values).mean((2, 3)))


def test_multiplications_and_turns():
    log: list[str] = []
    models, inputs = [Layers("a", log).eval(), Layers("b", log).eval()], {"pixel_values": torch.zeros(1, 3, 8, 8)}
    assert count_macs(models[0], inputs) == 8 * 8 * 4 * 3 * 9 + 4 * 5
    log.clear()
    found = measure_latencies(models, [inputs, inputs], repeats=4)
    assert log == ["a", "b"] * 7  # three to warm up
    assert all(0 < its.lower <= its.median <= its.upper for its in found)
