"""Checks before training."""

import pytest

from hf_medtl import MedtlError, Recipe
from hf_medtl.runs import preflight
from tests.support.commands import options


def test_check_returns_a_plan_and_writes_nothing(phantoms, tiny_checkpoint, tmp_path):
    plan = preflight.check(Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "run")))
    assert plan.folder == tmp_path / "run"
    assert not plan.folder.exists()
    assert plan.task.name == "classification"
    assert plan.model.config.num_labels == len(plan.loaded.labels)
    assert plan.external is plan.checkpoint is None
    assert plan.space == {}
    assert plan.disk_bytes > 4 * plan.model.num_parameters()


def test_options_and_folder_are_checked_before_data_are_read(phantoms, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(Recipe, "load_data", lambda recipe: pytest.fail("data were read"))
    (tmp_path / "run").touch()
    values = options(phantoms, tiny_checkpoint("vit"), tmp_path / "run")
    with pytest.raises(MedtlError, match="is a file"):
        preflight.check(Recipe(**values))
    with pytest.raises(MedtlError, match="number of trials"):
        preflight.check(Recipe(**values, search=-1))
    with pytest.raises(MedtlError, match="holds an access token"):
        preflight.check(Recipe(**values, search=-1, run_name="hf_" + "a" * 34))
