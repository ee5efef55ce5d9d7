"""Nested subsets of the training split, by group and label; their runs fraction the cache of prepared images."""

import json

import numpy as np
import pandas as pd
import pytest

from hf_medtl import MedtlError, Recipe, load, run
from hf_medtl.common.system import cache_dir
from hf_medtl.data.subset import nested_subset, subsample_training
from tests.support.commands import options

FRACTIONS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)


def groups_of(n_patients: int, seed: int) -> pd.DataFrame:
    """Return a table of patients with one to four images each, a rare label and two sources."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(n_patients):
        label, source = rng.choice(["a", "b", "c"], p=[0.7, 0.27, 0.03]), rng.choice(["x", "y"], p=[0.8, 0.2])
        rows += [{"group": f"g{patient:04d}", "label": label, "source": source}] * rng.integers(1, 5)
    return pd.DataFrame(rows)


@pytest.mark.parametrize("seed", range(5))
def test_subsets_are_nested_stratified_and_keep_groups_whole(seed):
    table = groups_of(300, seed)
    before: set[int] = set()
    for fraction in FRACTIONS:
        part = nested_subset(table["label"].tolist(), table["group"].tolist(), fraction, seed, table["source"].tolist())
        rows = set(np.flatnonzero(part))
        assert before < rows
        before = rows
        chosen = table[part]
        assert set(chosen["label"]) == {"a", "b", "c"}
        assert set(chosen["group"]).isdisjoint(table[~part]["group"])
        assert chosen["group"].nunique() == max(3, round(300 * fraction))
        if fraction >= 0.1:
            for column in ("label", "source"):
                total = table.drop_duplicates("group")[column].value_counts()
                selected = chosen.drop_duplicates("group")[column].value_counts().reindex(total.index)
                # Each of six strata is off by less than one, and the first group of each label comes in addition.
                assert (selected - total * fraction).abs().max() <= 3
    assert len(before) == len(table)


def test_subset_depends_only_on_seed():
    table = groups_of(100, 0)
    one, again, other = (nested_subset(table["label"], table["group"], 0.2, seed) for seed in (1, 1, 2))
    assert (one == again).all()
    assert (one != other).any()


def test_multilabel_and_unlabeled_subsets():
    cells, groups = ["p|q", "", "q", "", "r", "q"], list("abcdef")
    part = nested_subset(cells, groups, 0.01, 0)
    selected = {label for cell, kept in zip(cells, part, strict=True) if kept for label in cell.split("|")}
    assert {"p", "q", "r"} <= selected
    assert nested_subset(["", ""], ["a", "b"], 0.01, 0).sum() == 1  # masks need no labels


def test_subsampling_changes_only_training_split(phantoms):
    whole = load("brain-phantoms", phantoms, seed=3)
    part = subsample_training(whole, 0.25, 3)
    for split in ("validation", "test"):
        after, before = (x.table[x.table["split"] == split].reset_index(drop=True) for x in (part, whole))
        pd.testing.assert_frame_equal(after, before)
    assert len(part.fingerprints) == len(part.table)
    assert part.excluded["kind"].value_counts()["not in the share for training"] == len(whole.table) - len(part.table)
    pd.testing.assert_frame_equal(part.with_unused().table, whole.table)
    assert subsample_training(whole, 1.0, 3) is whole


@pytest.mark.parametrize("fraction", [0, -0.1, 1.2, float("nan")])
def test_rejects_fraction_outside_0_1(fraction, tmp_path):
    with pytest.raises(MedtlError, match="above 0 and at most 1"):
        nested_subset(["a"], ["g"], fraction, 0)
    with pytest.raises(MedtlError, match="--train_fraction must be above 0"):
        Recipe(train_fraction=fraction, output_dir=str(tmp_path))
    with pytest.raises(MedtlError, match="Remove --train_fraction"):
        Recipe(train_fraction=0.5, splits="splits.csv", output_dir=str(tmp_path))


@pytest.mark.slow
def test_run_on_subset_keeps_test_split_and_reuses_cache(phantoms, tiny_checkpoint, tmp_path, finished_run):
    """The test split is that of the complete run, nothing is prepared again, and splits.csv restores the subset."""
    prepared = {path.name for path in (cache_dir() / "pictures").glob("*.arrow")}
    folder = run(
        Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "part", train_fraction=0.3, num_train_epochs=1))
    )
    assert {path.name for path in (cache_dir() / "pictures").glob("*.arrow")} == prepared
    whole, part = (
        pd.read_csv(run_folder / "splits.csv").set_index("image_id") for run_folder in (finished_run, folder)
    )
    assert (whole["split"][part.index] == part["split"]).all()
    lost = whole.drop(part.index)
    assert set(lost["split"]) == {"train"}
    kept = part[part["split"] == "train"]["group"].nunique()
    assert kept == round(0.3 * whole[whole["split"] == "train"]["group"].nunique())
    names = pd.read_csv(folder / "predictions.csv")["image_id"].tolist()
    assert names == pd.read_csv(finished_run / "predictions.csv")["image_id"].tolist()
    assert "train_fraction: 0.3" in (folder / "recipe.yaml").read_text()
    assert len(pd.read_csv(folder / "excluded.csv")) == len(lost)
    again = load("brain-phantoms", phantoms, splits=folder / "splits.csv")
    assert again.table["image_id"].tolist() == part.index.tolist()
    assert json.loads((folder / "results.json").read_text())["n"] == len(names)
