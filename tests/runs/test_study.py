"""Learning-curve studies: a resumable grid of ordinary runs, and its summary."""

import json
import shlex
import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from hf_medtl import MedtlError, Recipe, run
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.runs.study import estimate_seconds, study
from hf_medtl.runs.study_cells import list_arms, list_cells, match_steps
from hf_medtl.runs.study_grid import Grid
from hf_medtl.runs.sweep import check_same_run
from hf_medtl.tasks import TASKS
from tests.support.commands import flags, options
from tests.support.segmentation_runs import segmentation_recipe
from tests.support.training_processes import wait_for_step

SMALL = {"fractions": [25, 100], "seeds": [1]}


def study_options(phantoms: Path, output: Path, **overrides: object) -> dict[str, object]:
    """Return options of a recipe that takes seconds, without the backbone, which the grid sets."""
    values = options(phantoms, phantoms, output, num_train_epochs=1, learning_rate=1e-3, **overrides)
    return {key: value for key, value in values.items() if key not in ("model_name_or_path", "seed")}


def make_grid(tiny_checkpoint, *families: str, **overrides: object) -> Grid:
    return Grid.from_cli({"models": [str(tiny_checkpoint(family)) for family in families], **SMALL, **overrides}, [])[0]


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "cells").iterdir() if path.is_dir()}


@pytest.fixture(scope="module")
def studied(phantoms, tiny_checkpoint, tmp_path_factory) -> Path:
    """Return the folder of a study of a tiny ViT, pretrained and from scratch."""
    folder = tmp_path_factory.mktemp("study") / "brain"
    assert (
        study(
            Recipe(**study_options(phantoms, folder)),
            make_grid(tiny_checkpoint, "vit", scratch={"learning_rate": "1e-2"}),
        )
        == 0
    )
    return folder


@pytest.mark.slow
def test_each_cell_is_an_ordinary_run(studied):
    assert names(studied) == {f"tiny-vit-{arm}-{percent}-seed1" for arm in ("full", "scratch") for percent in (25, 100)}
    for cell in (studied / "cells").glob("*/"):
        assert {"model.safetensors", "README.md", "results.json", "splits.csv"} <= {p.name for p in cell.iterdir()}
        assert not list(cell.glob("checkpoint-*"))
        assert not (cell / "UNFINISHED").exists()
        assert json.loads(cell.with_name(f"{cell.name}.json").read_text())["seconds"] > 0
        assert "The run is in" in cell.with_name(f"{cell.name}.log").read_text()
    scratch = yaml.safe_load((studied / "cells" / "tiny-vit-scratch-25-seed1" / "recipe.yaml").read_text())
    assert scratch["from_scratch"] is True
    assert scratch["learning_rate"] == 0.01  # converted to a number from text
    assert scratch["train_fraction"] == 0.25


def test_training_subsets_nest_and_test_images_stay(studied):
    split = {
        (arm, percent): pd.read_csv(studied / "cells" / f"tiny-vit-{arm}-{percent}-seed1" / "splits.csv")
        for arm in ("full", "scratch")
        for percent in (25, 100)
    }
    images_by_split = {key: images.groupby("split")["image_id"].agg(set) for key, images in split.items()}
    for name in ("test", "validation"):
        assert len({frozenset(images[name]) for images in images_by_split.values()}) == 1
    assert (
        images_by_split["full", 25]["train"]
        == images_by_split["scratch", 25]["train"]
        < images_by_split["full", 100]["train"]
    )


def test_study_json_and_page_have_all_cells(studied, phantoms):
    summary = json.loads((studied / "study.json").read_text())
    assert summary["metric"] == "roc_auc"
    assert summary["failed"] == {}
    assert len(summary["cells"]) == 4
    assert len(summary["curve"]) == 4
    assert len(summary["contrasts"]) == 4
    for point in summary["curve"]:
        values = [
            cell["metrics"]["roc_auc"]["value"]
            for cell in summary["cells"]
            if (cell["arm"], cell["percent"]) == (point["arm"], point["percent"])
        ]
        assert [*point["by_seed"].values()] == pytest.approx(values)
        assert point["value"] == pytest.approx(values[0])
    text = (studied / "README.md").read_text()
    assert "Not a medical device" in text
    assert "Synthetic data" in text
    assert str(phantoms.parent) not in text
    for line in summary["statements"]:
        assert f"- {line}" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {4, 7}
    assert (studied / "figures" / "learning_curve.png").stat().st_size > 5000
    assert Grid.from_cli({}, ["--grid", str(studied / "grid.yaml")])[0].scratch == {"learning_rate": 0.01}


def test_command_of_the_page_repeats_the_study(studied, phantoms, tiny_checkpoint, monkeypatch, capsys):
    line = next(line for line in (studied / "README.md").read_text().splitlines() if line.startswith("python"))
    assert "- MODELS: the models tiny-vit, by folder" in (studied / "README.md").read_text()
    words = [
        {"MODELS": str(tiny_checkpoint("vit")), "DATA": str(phantoms)}.get(word, word) for word in shlex.split(line)
    ]
    monkeypatch.chdir(studied)
    monkeypatch.setattr(sys, "argv", [words[1], *words[3:], "--dry_run"])
    with pytest.raises(SystemExit) as end:
        exec(words[2], {})
    assert end.value.code == 0
    assert capsys.readouterr().out.count("tiny-vit, ") == 4
    assert not (studied / "runs").exists()


def test_finished_study_is_not_trained_again(studied, phantoms, tiny_checkpoint, capsys):
    before = (studied / "study.json").read_text()

    def fail(recipe: Recipe) -> Path:
        raise AssertionError("trained again")

    grid = make_grid(tiny_checkpoint, "vit", scratch={"learning_rate": 0.01})
    assert study(Recipe(**study_options(phantoms, studied)), grid, fail) == 0
    assert (studied / "study.json").read_text() == before
    with pytest.raises(MedtlError, match=r"--learning_rate was 0.001 in the run of .* and is 0.003 now"):
        study(Recipe(**study_options(phantoms, studied) | {"learning_rate": 3e-3}), grid, fail)


def test_dry_run_lists_the_cells_and_writes_nothing(phantoms, tiny_checkpoint, tmp_path, capsys, caplog):
    caplog.set_level("INFO", "hf_medtl")
    recipe = Recipe(**study_options(phantoms, tmp_path / "none", dry_run=True))
    assert study(recipe, make_grid(tiny_checkpoint, "cnn")) == 0
    assert not (tmp_path / "none").exists()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    cell_rows = [row for row in rows if len(row) == 5 and row[1].endswith("%")]
    assert [row[:2] for row in cell_rows] == [["tiny-cnn, full", "25 %"], ["tiny-cnn, full", "100 %"]]
    assert all(row[4].endswith(" s") for row in cell_rows)
    assert "2 cells to do in " in caplog.text


def test_time_is_estimated_from_finished_cells(studied, phantoms, tiny_checkpoint, monkeypatch):
    cells = list_cells(Recipe(**study_options(phantoms, studied)), make_grid(tiny_checkpoint, "vit", seeds=[1, 3]))
    monkeypatch.setattr("hf_medtl.runs.study.time_forward_pass", lambda cell: 0.0)
    estimated = estimate_seconds(cells)
    assert {cell.seed for cell in estimated} == {3}
    notes = [studied / "cells" / f"tiny-vit-full-{percent}-seed1.json" for percent in (25, 100)]
    taken = [json.loads(path.read_text())["seconds"] for path in notes]
    assert [*estimated.values()] == pytest.approx([sum(taken) / 2] * 2)


@pytest.mark.slow
def test_failed_cell_is_logged_and_retried(phantoms, tiny_checkpoint, tmp_path):
    def fail_small(recipe: Recipe) -> Path:
        if recipe.train_fraction < 1:
            raise RuntimeError("no room\nmore message")
        return run(recipe)

    recipe, grid = Recipe(**study_options(phantoms, tmp_path / "study")), make_grid(tiny_checkpoint, "cnn")
    assert study(recipe, grid, fail_small) == 1
    summary = json.loads((tmp_path / "study" / "study.json").read_text())
    name = "tiny-cnn, full, 25 %, seed 1"
    assert summary["failed"] == {name: "RuntimeError: no room"}
    assert [cell["percent"] for cell in summary["cells"]] == [100]
    assert f"- {name}: RuntimeError: no room" in (tmp_path / "study" / "README.md").read_text()
    assert "Traceback" in (tmp_path / "study" / "cells" / "tiny-cnn-full-25-seed1.log").read_text()
    assert study(recipe, grid) == 0
    assert json.loads((tmp_path / "study" / "study.json").read_text())["failed"] == {}


@pytest.mark.slow
def test_study_without_a_finished_cell_raises(phantoms, tiny_checkpoint, tmp_path):
    def fail(recipe: Recipe) -> Path:
        raise MedtlError("nothing works")

    with pytest.raises(
        MedtlError, match=r"None of 2 cells is finished. tiny-cnn, full, 25 %, seed 1: MedtlError: nothing"
    ):
        study(Recipe(**study_options(phantoms, tmp_path / "study")), make_grid(tiny_checkpoint, "cnn"), fail)


@pytest.mark.slow
def test_killed_study_resumes(process_pool, phantoms, tiny_checkpoint, tmp_path):
    """SIGKILL in the second cell, through the recipe's command line."""
    output = tmp_path / "study"
    values = study_options(phantoms, output)
    values.pop("use_cpu"), values.pop("disable_tqdm")
    grid = ["--models", tiny_checkpoint("cnn"), "--strategies", "full", "--fractions", 25, 100, "--seeds", 1]
    plain = {"augmentation": "light", "head_learning_rate": 1e-3}  # override the recipe file
    command = ["recipes/study.py", *flags(**values | plain, use_cpu="true"), *grid]
    process = process_pool.start_script(*command)
    wait_for_step(process, output / "cells" / "tiny-cnn-full-100-seed1", 1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = output / "cells" / "tiny-cnn-full-25-seed1" / "model.safetensors"
    assert (output / "cells" / "tiny-cnn-full-100-seed1" / "UNFINISHED").exists()
    assert not (output / "study.json").exists()
    modified = first.stat().st_mtime_ns
    resumed = process_pool.run_script(*command)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert first.stat().st_mtime_ns == modified
    summary = json.loads((output / "study.json").read_text())
    assert len(summary["cells"]) == 2
    assert "2/2" not in resumed.stderr  # a bar, which is for terminals


@pytest.mark.slow
def test_segmentation_study_reports_dice(chest_phantoms, tmp_path):
    recipe = segmentation_recipe(chest_phantoms, tmp_path / "study", num_train_epochs=1, encoder=None)
    random = {"tu-test_resnet": {"encoder_weights": "none"}}
    grid = Grid(models=("tu-test_resnet",), fractions=(50,), seeds=(1,), options=random)
    assert study(recipe, grid) == 0
    summary = json.loads((tmp_path / "study" / "study.json").read_text())
    assert summary["metric"] == "dice"
    (point,) = summary["curve"]
    assert point["arm"] == "tu-test_resnet, scratch"
    table = pd.read_csv(tmp_path / "study" / summary["cells"][0]["folder"] / "predictions.csv")
    assert point["value"] == pytest.approx(table["dice"].mean())


def test_arms_have_pretrained_and_random_weights(chest_phantoms, phantoms, tiny_checkpoint, tmp_path):
    """Arms of encoders and backbones, by folder or name, with pretrained and with random weights."""
    recipe = segmentation_recipe(chest_phantoms, tmp_path, encoder=None, encoder_weights="imagenet")
    folder = str(tiny_checkpoint("timm"))
    grid = Grid((folder, "resnet34"), ("full", "feature_extraction"), scratch={"learning_rate": 0.1})
    arms = {arm.name: (arm.backbone, arm.scratch, arm.options) for arm in list_arms(recipe, grid)}
    assert arms["tiny-timm, full"] == ("tiny-timm", False, {"encoder_weights": folder, "strategy": "full"})
    random = {"encoder": "tu-test_resnet", "encoder_weights": "none", "strategy": "full", "learning_rate": 0.1}
    assert arms["tiny-timm, scratch"] == ("tiny-timm", True, random)
    assert arms["resnet34, feature_extraction"][2]["encoder"] == "resnet34"
    assert len(arms) == 6
    recipe = Recipe(**study_options(phantoms, tmp_path))
    names = [arm.name for arm in list_arms(recipe, Grid((str(tiny_checkpoint("vit")), "cnn"), ("lora",), scratch={}))]
    assert names == ["tiny-vit, lora", "tiny-vit, scratch", "cnn, scratch"]  # the small CNNs have no pretrained weights


def test_task_scores_equal_those_of_the_run(finished_run, results):
    table, auc = RunFolder(finished_run).predictions, results["metrics"]["roc_auc"]["value"]
    strata, score = TASKS["classification"].score(table, results)
    assert strata == table["label"].tolist()
    assert score(None) == pytest.approx(auc)
    assert score(np.ones((2, len(table)))) == pytest.approx([auc, auc])
    multilabel = table.assign(label=["lesion|scar" if i % 3 else "scar" for i in range(len(table))])
    multilabel = multilabel.assign(p_scar=multilabel["p_lesion"] ** 2, p_gone=0.5)
    _, mean = TASKS["multilabel"].score(multilabel, {"labels": ["lesion", "scar", "gone"]})
    has = multilabel["label"] != "scar"
    assert mean(None) == pytest.approx(
        roc_auc_score(has, multilabel["p_lesion"])
    )  # every image has "scar" and none has "gone", so both are undefined


def test_match_steps_keeps_the_number_of_steps(tmp_path):
    recipe = Recipe(output_dir=str(tmp_path), num_train_epochs=10, per_device_train_batch_size=16, strategy="lp_ft")
    matched = match_steps(recipe, 30, 163)  # 2 batches against 11
    assert matched.num_train_epochs == 55
    assert matched.probe_epochs == 17
    assert (matched.eval_strategy, matched.eval_steps, matched.save_steps) == ("steps", 11, 11)
    assert match_steps(recipe, 163, 163).num_train_epochs == 10
    with pytest.raises(MedtlError, match="Give --budget epochs"):
        match_steps(Recipe(output_dir=str(tmp_path), strategy="progressive", unfreeze_schedule="2:1"), 30, 163)


def test_flags_override_grid_yaml(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("strategies: [full, feature_extraction]\nseeds: [5]\noptions: {full: {learning_rate: 2e-4}}\n")
    argv = ["--grid", str(path), "--seeds", "7", "8", "--seed_is_other", "1", "--learning_rate", "3"]
    grid, remaining = Grid.from_cli({"models": ["a"], "seeds": [1], "fractions": [10]}, argv)
    assert grid == Grid(
        ("a",), ("full", "feature_extraction"), (10,), (7, 8), options={"full": {"learning_rate": 2e-4}}
    )
    assert remaining == ["--seed_is_other", "1", "--learning_rate", "3"]


@pytest.mark.parametrize(
    ("values", "argv", "message"),
    [
        ({"model": ["a"]}, [], "Unknown key 'model' in the grid. Did you mean 'models'"),
        ({}, [], "--models are one or more, each once; found none"),
        ({"models": ["a"]}, ["--seeds", "1", "1"], "--seeds are one or more, each once; found 1 1"),
        ({"models": ["a"]}, ["--fractions", "0", "50"], "percent above 0 and up to 100"),
        ({"models": ["a"]}, ["--fractions", "few"], "can't be read .*few"),
        ({"models": ["a"]}, ["--budget", "time"], "--budget is steps or epochs"),
        ({"models": ["a"]}, ["--scratch", "learningrate=1"], "Unknown key 'learningrate'.* 'learning_rate'"),
        ({"models": ["a"]}, ["--scratch", "test_fraction=0.1"], "test_fraction must be the same in all cells"),
        ({"models": ["a"], "options": {"b": {}}}, [], "options for 'b', which is not one of a, full"),
    ],
)
def test_rejects_invalid_grids(values, argv, message):
    with pytest.raises(MedtlError, match=message):
        Grid.from_cli(values, argv)


def test_rejects_options_and_folders_that_do_not_go_with_a_study(studied, phantoms, tiny_checkpoint, tmp_path):
    grid = make_grid(tiny_checkpoint, "cnn")
    for more, message in (({"folds": 3}, "--folds: not with a study"), ({"search": 3}, "--search: not with a study")):
        with pytest.raises(MedtlError, match=message):
            study(Recipe(**study_options(phantoms, tmp_path / "study", **more)), grid)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    with pytest.raises(MedtlError, match=r"something else than a study \(chapter1.tex\)"):
        study(Recipe(**study_options(phantoms, tmp_path / "thesis")), grid)
    with pytest.raises(MedtlError, match=r"1 % and a smaller fraction .* are both 2 groups"):
        list_cells(
            Recipe(**study_options(phantoms, tmp_path / "study")),
            Grid((str(tiny_checkpoint("cnn")),), fractions=(0.5, 1)),
        )
    cell = list_cells(Recipe(**study_options(phantoms, studied)), make_grid(tiny_checkpoint, "vit"))[0]
    table = cell.run.path / "splits.csv"
    before = table.read_text()
    try:
        table.write_text(before.replace(",test,", ",train,", 1))
        with pytest.raises(MedtlError, match="split differ"):
            check_same_run(cell.run, cell.recipe, cell.loaded)
    finally:
        table.write_text(before)
