"""Checks before training."""

import pandas as pd
import pytest

from hf_medtl import MedtlError, Recipe
from hf_medtl.runs import preflight
from hf_medtl.runs.console import show_plan
from tests.support.commands import options
from tests.support.image_files import write_noise_image


def test_check_returns_a_plan_and_writes_nothing(phantoms, tiny_checkpoint, tmp_path):
    plan = preflight.check(Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "run")))
    assert plan.folder == tmp_path / "run"
    assert not plan.folder.exists()
    assert plan.task.name == "classification"
    assert plan.model.config.num_labels == len(plan.loaded.labels)
    assert plan.external is plan.checkpoint is None
    assert plan.space == {}
    assert plan.disk_bytes > 4 * plan.model.num_parameters()


def test_plan_says_how_a_table_was_read(tiny_checkpoint, tmp_path, capsys):
    for i in range(24):
        write_noise_image(tmp_path / "data" / f"{i}.png", i)
    rows = {"Path": [f"{i}.png" for i in range(24)], "Grade [I]": ["x", "y"] * 12, "MRN": range(24), "fold": 1}
    pd.DataFrame(rows).to_csv(tmp_path / "data" / "t.csv", sep=";", index=False, encoding="utf-16")
    values = options(tmp_path / "data" / "t.csv", tiny_checkpoint("vit"), tmp_path / "run")
    recipe = Recipe(**values | {"dataset": "table", "columns": "label=grade i", "positive_label": "y"})
    show_plan(recipe, preflight.check(recipe))
    output = capsys.readouterr().out
    assert "- t.csv: file_name from Path, label from Grade [I], patient from MRN; not used: fold." in output
    assert "- t.csv: the column fold may be the split but is not used. To use one, write train, " in output
    assert "columns: label=grade i" in recipe.to_yaml()


def test_options_and_folder_are_checked_before_data_are_read(phantoms, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(Recipe, "load_data", lambda recipe: pytest.fail("data were read"))
    (tmp_path / "run").touch()
    values = options(phantoms, tiny_checkpoint("vit"), tmp_path / "run")
    with pytest.raises(MedtlError, match="is a file"):
        preflight.check(Recipe(**values))
    with pytest.raises(MedtlError, match="number of trials"):
        preflight.check(Recipe(**values, search=-1))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for change, message in (
        (
            {"model_name_or_path": "google/vit-bas"},
            r"--model_name_or_path: google/vit-bas is neither a folder .* network",
        ),
        ({"model_name_or_path": "cnn_basline"}, r"cnn_basline does not exist.* Did you mean 'cnn_baseline'\?"),
        (
            {"model_name_or_path": "timm/resnet50"},
            r"timm/resnet50 is neither .* of this architecture: timm/resnet50\.a1",
        ),
        ({"lung_model": "runs/absent", "preprocessing": "lung_crop"}, "--lung_model: The folder runs/absent does not"),
    ):
        with pytest.raises(MedtlError, match=message):
            preflight.check(Recipe(**values | change))
    with pytest.raises(MedtlError, match="holds an access token"):
        preflight.check(Recipe(**values, search=-1, run_name="hf_" + "a" * 34))
