"""Models that belong together, and metrics, on the Hub."""

import json
import shutil

import evaluate
import pytest
from huggingface_hub import HfApi
from typer.testing import CliRunner

from hf_medtl import MedtlError
from hf_medtl.cli.main import app
from hf_medtl.evaluation import modules
from hf_medtl.publish.collections import collect, publishable_models
from tests.support.commands import WAIVED

WAIVES = [part for name in WAIVED for part in ("--waive", f"{name}=a test")]


def command(*parts: object) -> str:
    """What `hf-medtl` prints."""
    done = CliRunner().invoke(app, [str(part) for part in parts])
    if done.exception:
        raise done.exception
    return done.stdout


@pytest.fixture
def folds(finished, tmp_path):
    """The folder of two folds."""
    folder = tmp_path / "cv"
    for fold in (0, 1):
        shutil.copytree(finished, folder / f"fold-{fold}")
    (folder / "results.json").write_text(json.dumps({"folds": [{"fold": 0}, {"fold": 1}]}))
    return folder


def test_the_models_of_a_study_are_not_chosen_by_their_results(tmp_path):
    cells = [
        {"arm": arm, "percent": percent, "seed": seed, "folder": f"cells/{i}"}
        for i, (arm, percent, seed) in enumerate(
            [
                ("vit.tiny, lora", 10.0, 1),
                ("vit.tiny, lora", 100.0, 2),
                ("vit.tiny, lora", 100.0, 1),
                ("cnn_a", 50.0, 3),
            ]
        )
    ]
    (tmp_path / "study.json").write_text(json.dumps({"cells": cells}))
    assert publishable_models(tmp_path) == {"-vit.tiny-lora": tmp_path / "cells/2", "-cnn_a": tmp_path / "cells/3"}


def test_folds_go_to_a_collection(folds, hub, written):
    parts = ("push", folds, "ci-user/brains", "--collection", "Brains, two folds", "--private", *WAIVES)
    said = command(*parts, "--dry_run")
    assert "would go to ci-user/brains-fold-1" in said
    assert "2 models would be in the Collection 'Brains, two folds'" in said
    assert not written()
    for _ in range(2):  # the second changes nothing
        said = command(*parts)
    address = said.rpartition("Collected in ")[2].strip()
    found = HfApi().get_collection(address.partition("/collections/")[2])
    assert (found.title, found.private) == ("Brains, two folds", True)
    assert [item.item_id for item in found.items] == ["ci-user/brains-fold-0", "ci-user/brains-fold-1"]
    for name in ("ci-user/brains-fold-0", "ci-user/brains-fold-1"):
        assert HfApi().model_info(name).private
        assert [tag.name for tag in HfApi().list_repo_refs(name).tags] == ["v1"]


def test_one_bad_fold_and_nothing_is_sent(folds, written):
    (folds / "fold-1" / "model.safetensors").unlink()
    with pytest.raises(MedtlError, match=r"fold-1/model.safetensors is missing"):
        command("push", folds, "ci-user/bad", *WAIVES)
    assert not written()


def test_a_collection_that_fails_says_so(failing):
    failing({"path": "/api/collections", "status": 403, "times": 9})
    with pytest.raises(MedtlError, match=r"could not be created .* no write access here"):
        collect("Ours", ["http://127.0.0.1/ci-user/model"])


@pytest.mark.parametrize("name", modules.NAMES)
def test_a_metric_is_loaded_by_its_name(name, hub, written):
    repo, api = f"ci-user/{name}", HfApi()
    said = command("metric", "push", name, repo, "--dry_run")
    assert "app.py" in said
    assert f"{name}.py" in said
    assert not written()
    assert f"/spaces/{repo}" in command("metric", "push", name, repo)
    commits = len(api.list_repo_commits(repo, repo_type="space"))
    command("metric", "push", name, repo)
    assert len(api.list_repo_commits(repo, repo_type="space")) == commits
    assert evaluate.load(repo).name == name


def test_a_metric_keeps_its_name(hub, written):
    with pytest.raises(MedtlError, match="give OWNER/clinical_metrics, found ci-user/mine"):
        command("metric", "push", "clinical_metrics", "ci-user/mine")
    with pytest.raises(MedtlError, match="Expected a module among"):
        command("metric", "push", "accuracy", "ci-user/accuracy")
    assert not written()


def test_a_metric_that_may_not_be_written_says_so(failing):
    failing({"path": "/tree/", "status": 403, "times": 9})
    with pytest.raises(MedtlError, match=r"could not be uploaded .* no write access here"):
        command("metric", "push", "clinical_metrics", "ci-user/clinical_metrics")
