"""Cross-validation: folds, their summary, and restarts."""

import gc
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, roc_auc_score
from transformers import PreTrainedModel

from hf_medtl import MedtlError, Recipe, run
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.evaluation.metrics import decide
from hf_medtl.runs.cross_validation import cross_validate
from hf_medtl.runs.folder import changed_options
from tests.support.commands import flags, options
from tests.support.multilabel_tables import write_table
from tests.support.process_pool import RECIPE
from tests.support.segmentation_runs import segmentation_recipe
from tests.support.training_processes import same_weights, wait_for_step


def fold_options(phantoms: Path, tiny_checkpoint, output: Path, **overrides: object) -> dict[str, object]:
    values = {"folds": 3, "augmentation": "brain", "num_train_epochs": 2, "early_stopping_patience": 0, **overrides}
    return options(phantoms, tiny_checkpoint("cnn"), output, **values)


@pytest.fixture(scope="module")
def validated(phantoms, tiny_checkpoint, tmp_path_factory) -> Path:
    return run(Recipe(**fold_options(phantoms, tiny_checkpoint, tmp_path_factory.mktemp("folds") / "all")))


def read_json(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def read(folder: Path) -> tuple[dict, pd.DataFrame]:
    return read_json(folder), pd.read_csv(folder / "predictions.csv")


@pytest.mark.slow
def test_every_image_is_tested_once_with_the_threshold_of_its_fold(validated):
    result, table = read(validated)
    assert sorted(table["image_id"]) == sorted(pd.read_csv(validated / "fold-0" / "splits.csv")["image_id"])
    assert table.groupby("group")["fold"].nunique().max() == 1
    for fold, rows in table.groupby("fold"):
        single, fold_predictions = read(validated / f"fold-{fold}")
        pd.testing.assert_frame_equal(rows.drop(columns="fold").reset_index(drop=True), fold_predictions)
        assert {key: single[key] for key in ("n", "threshold", "temperature", "metrics")}.items() <= result["folds"][
            fold
        ].items()
    true, score = table["label"] == result["positive_label"], table[f"p_{result['positive_label']}"]
    cut = table["fold"].map(lambda fold: result["folds"][fold]["threshold"])
    assert len(set(cut)) > 1
    assert result["threshold"] is None
    assert result["metrics"]["roc_auc"]["value"] == roc_auc_score(true, score)
    assert result["metrics"]["accuracy"]["value"] == accuracy_score(true, score >= cut)
    assert result["n"] == 48
    mean = np.mean([read(validated / f"fold-{k}")[0]["metrics"]["roc_auc"]["value"] for k in range(3)])
    assert result["mean_over_folds"]["roc_auc"]["value"] == pytest.approx(mean)


def test_summary_page_has_results_and_warnings(validated, phantoms):
    result, _ = read(validated)
    text = (validated / "README.md").read_text()
    auc = result["metrics"]["roc_auc"]
    assert f"| ROC AUC | {auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}] |" in text
    assert "Not a medical device" in text
    assert "Synthetic data" in text
    assert str(phantoms.parent) not in text
    assert all(
        len(row.split("|")) == 8 for row in text.splitlines() if row.startswith("| [") or row == "|---" * 6 + "|"
    )
    assert {path.name for path in (validated / "figures").iterdir()} == {
        "by_fold.png", "confusion_matrix.png", "roc.png", "reliability.png",
    }  # fmt: skip
    assert not (validated / "UNFINISHED").exists()


@pytest.mark.slow
def test_fold_equals_a_single_run_of_it(validated, process_pool, phantoms, tiny_checkpoint, tmp_path):
    """In a separate process: no state of fold 0 may reach fold 1."""
    values = fold_options(phantoms, tiny_checkpoint, tmp_path / "fold-1", fold=1)
    process_pool.run(tmp_path / "log", *flags(**values))
    assert same_weights(load_file(tmp_path / "fold-1" / "model.safetensors"), validated / "fold-1")
    for name in ("splits.csv", "predictions.csv"):
        assert (tmp_path / "fold-1" / name).read_text() == (validated / "fold-1" / name).read_text(), name
    assert changed_options(RunFolder(tmp_path / "fold-1"), (validated / "fold-1" / "recipe.yaml").read_text()) == {}


def test_finished_folds_are_not_trained_again(validated, phantoms, tiny_checkpoint, tmp_path, monkeypatch):
    output = tmp_path / "all"
    shutil.copytree(validated, output)
    (output / "results.json").unlink()
    # An earlier version did not write fold 0 to recipe.yaml, and no checksums.
    (output / "fold-0" / "checksums.json").unlink()
    lines = (output / "fold-0" / "recipe.yaml").read_text().splitlines()
    (output / "fold-0" / "recipe.yaml").write_text("\n".join(line for line in lines if line != "fold: 0"))
    with monkeypatch.context() as patch:
        patch.setattr("hf_medtl.runs.train.MedicalTrainer", None)  # training would fail
        run(Recipe(**fold_options(phantoms, tiny_checkpoint, output)))
    assert (output / "results.json").read_text() == (validated / "results.json").read_text()
    with pytest.raises(MedtlError, match="holds finished results"):
        run(Recipe(**fold_options(phantoms, tiny_checkpoint, output)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"learning_rate": 1e-3}, r"--learning_rate was not given in the run of .*fold-0 and is 0.001 now"),
        ({"split_seed": 7}, "--split_seed was not given"),
        ({"folds": 4}, "--folds was 3"),
    ],
)
def test_rejects_finished_folds_of_another_recipe(overrides, message, validated, phantoms, tiny_checkpoint, tmp_path):
    shutil.copytree(validated / "fold-0", tmp_path / "all" / "fold-0")
    with pytest.raises(MedtlError, match=message):
        run(Recipe(**fold_options(phantoms, tiny_checkpoint, tmp_path / "all", **overrides)))
    assert not (tmp_path / "all" / "fold-1").exists()


def test_rejects_a_finished_fold_of_another_split(validated, phantoms, tiny_checkpoint, tmp_path):
    shutil.copytree(validated / "fold-1", tmp_path / "all" / "fold-0")
    with pytest.raises(MedtlError, match="split differ from"):
        run(Recipe(**fold_options(phantoms, tiny_checkpoint, tmp_path / "all")))


def test_rejects_options_and_folders_incompatible_with_folds(phantoms, tiny_checkpoint, tmp_path):
    for overrides, message in (
        ({"push_to_hub": True}, r"Publish one \(--fold\)"),
        ({"splits": "splits.csv"}, "Remove one of them"),
        ({"resume_from_checkpoint": "run/checkpoint-3"}, "belongs to one fold"),
        ({"folds": 0, "fold": 1}, "needs the number of folds"),
    ):
        with pytest.raises(MedtlError, match=message):
            Recipe(**fold_options(phantoms, tiny_checkpoint, tmp_path / "all", **overrides))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    with pytest.raises(MedtlError, match=r"something else than folds \(chapter1.tex\)"):
        run(Recipe(**fold_options(phantoms, tiny_checkpoint, tmp_path / "thesis")))


def test_fold_0_is_in_the_yaml(phantoms, tiny_checkpoint, tmp_path):
    single = Recipe(**fold_options(phantoms, tiny_checkpoint, tmp_path / "run", fold=0))
    assert "fold: 0" in single.to_yaml().splitlines()
    assert Recipe(**fold_options(phantoms, tiny_checkpoint, tmp_path)).of_fold(0).to_yaml() == single.to_yaml()


def test_dry_run_shows_all_folds_and_writes_nothing(validated, phantoms, tiny_checkpoint, tmp_path, capsys):
    shutil.copytree(validated / "fold-1", tmp_path / "all" / "fold-1")
    run(Recipe(**fold_options(phantoms, tiny_checkpoint, tmp_path / "all", dry_run=True)))
    output = capsys.readouterr().out
    rows = [[cell.strip() for cell in row.split("│")[1:-1]] for row in output.splitlines()]
    assert [row[:2] for row in rows if len(row) == 5] == [["0", "to do"], ["1", "finished"], ["2", "to do"]]
    assert "MedicalCnnForImageClassification" in output
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["fold-1"]


@pytest.mark.slow
def test_models_of_finished_folds_are_freed(phantoms, tiny_checkpoint, tmp_path):
    """Trainer, model and callbacks refer to each other, so only a collection frees them."""
    alive = []

    def count(recipe: Recipe) -> Path:
        alive.append(sum(issubclass(type(thing), PreTrainedModel) for thing in gc.get_objects()))
        return run(recipe)

    gc.collect()
    cross_validate(
        Recipe(**fold_options(phantoms, tiny_checkpoint, tmp_path / "all", folds=2, num_train_epochs=1)), count
    )
    assert alive[0] == alive[1]


@pytest.mark.slow
def test_killed_cross_validation_resumes_to_the_same_results(
    validated, process_pool, phantoms, tiny_checkpoint, tmp_path
):
    output = tmp_path / "all"
    values = flags(**fold_options(phantoms, tiny_checkpoint, output))
    process = process_pool.start_code(RECIPE, *values)
    wait_for_step(process, output / "fold-1", 1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (output / "fold-1" / "UNFINISHED").exists()
    modified = (output / "fold-0" / "model.safetensors").stat().st_mtime_ns
    resumed = process_pool.run_code(RECIPE, *values)  # like a single run, it resumes only on request
    assert resumed.returncode == 1
    assert "--resume_from_checkpoint auto" in resumed.stderr
    resumed = process_pool.run_code(RECIPE, *values, "--resume_from_checkpoint", "auto")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert (output / "fold-0" / "model.safetensors").stat().st_mtime_ns == modified
    for fold in range(3):
        assert same_weights(load_file(validated / f"fold-{fold}" / "model.safetensors"), output / f"fold-{fold}")
    assert (output / "predictions.csv").read_text() == (validated / "predictions.csv").read_text()
    assert read(output)[0]["metrics"] == read(validated)[0]["metrics"]


@pytest.mark.slow
def test_two_processes_write_one_summary(process_pool, phantoms, tiny_checkpoint, tmp_path):
    values = fold_options(
        phantoms,
        tiny_checkpoint,
        tmp_path / "all",
        folds=2,
        max_steps=2,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
    )
    process_pool.run(tmp_path / "log", *flags(**values), processes=2)
    result, table = read(tmp_path / "all")
    assert result["environment"]["processes"] == 2
    assert table["image_id"].is_unique
    assert len(table) == result["n"] == 48


@pytest.mark.slow
def test_multilabel_folds_use_own_thresholds_and_average_external_results(tiny_checkpoint, tmp_path):
    data, external_data = write_table(tmp_path / "marks", 48), write_table(tmp_path / "other", 24, 5000)
    overrides = {"dataset": "table", "folds": 2, "external_dataset": "table", "external_data_dir": str(external_data)}
    output = run(Recipe(**options(data, tiny_checkpoint("cnn"), tmp_path / "all", **overrides)))
    result = json.loads((output / "results.json").read_text())
    table = pd.read_csv(output / "predictions.csv", keep_default_na=False)
    has = table["label"].map(lambda cell: "bar" in cell.split("|"))
    thresholds = [read_json(output / f"fold-{k}")["per_label"]["bar"]["threshold"] for k in range(2)]
    decided = table["p_bar"] >= table["fold"].map(lambda fold: thresholds[fold])
    bar = result["per_label"]["bar"]
    assert bar["threshold"] is None
    assert bar["metrics"]["accuracy"]["value"] == accuracy_score(has, decided)
    assert bar["metrics"]["roc_auc"]["value"] == roc_auc_score(has, table["p_bar"])
    external_auc = [read_json(output / f"fold-{k}")["external"]["metrics"]["roc_auc"]["value"] for k in range(2)]
    assert result["external_mean_over_folds"]["roc_auc"]["lowest"] == min(external_auc)
    assert "On table, mean over the folds' models" in (output / "README.md").read_text()


@pytest.mark.slow
def test_segmentation_folds_pool_mask_metrics(chest_phantoms, tmp_path):
    values = segmentation_recipe(chest_phantoms, tmp_path / "all", folds=2, num_train_epochs=1)
    result, table = read(run(values))
    assert result["metrics"]["dice"]["value"] == pytest.approx(table["dice"].mean())
    assert sum(metrics["n"] for metrics in result["by_source"].values()) == result["n"] == len(table)
    assert (tmp_path / "all" / "figures" / "dice_by_source.png").exists()


def test_decide_takes_a_threshold_for_each_case():
    p = np.array([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9]])
    assert decide(p, 1, np.array([0.3, 0.5, 0.95])).tolist() == [1, 0, 0]
    with pytest.raises(ValueError, match=r"one for each of 3 cases, found \(2,\)"):
        decide(p, 1, np.array([0.3, 0.5]))


@pytest.mark.slow
def test_folds_benchmark_compares_cross_validations(validated, process_pool, phantoms, tiny_checkpoint, tmp_path):
    other = run(
        Recipe(**fold_options(phantoms, tiny_checkpoint, tmp_path / "other", seed=2, split_seed=1, learning_rate=1e-3))
    )
    process = process_pool.run_script("benchmarks/folds.py", validated, other, "--resamples", 100)
    assert process.returncode == 0, process.stderr
    rows = {row.split("|")[1].strip(): row.split("|") for row in process.stdout.splitlines() if row.startswith("|")}
    (first, table), (second, second_table) = read(validated), read(other)
    both = table.merge(second_table, on=["image_id", "label", "group", "fold"])
    assert len(both) == 48
    mean, true = (both["p_lesion_x"] + both["p_lesion_y"]) / 2, both["label"] == "lesion"
    cuts = np.mean([[single["threshold"] for single in result["folds"]] for result in (first, second)], axis=0)
    for name, decided in (("at 0.5", mean >= 0.5), ("at the mean of thresholds", mean >= cuts[both["fold"]])):
        cells = rows[f"average, {name}"]
        assert cells[2].split()[0] == f"{roc_auc_score(true, mean):.3f}"
        assert cells[3].split()[0] == f"{accuracy_score(true, decided):.3f}"
    assert (
        rows["all"][3].split()[0] == f"{first['metrics']['accuracy']['value']:.3f}"
    )  # each image with the threshold of its fold
    gain = first["metrics"]["roc_auc"]["value"] - second["metrics"]["roc_auc"]["value"]
    assert rows["other minus all"][2].split()[0] == f"{-gain:+.3f}"

    mismatched = process_pool.run_script("benchmarks/folds.py", validated, validated / "fold-0")
    assert mismatched.returncode == 1
    assert "same number of folds" in mismatched.stderr
