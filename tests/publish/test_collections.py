"""Hub Collections of the models of one study, and metrics published as Spaces."""

import json
import shutil

import evaluate
import pytest
from huggingface_hub import HfApi

from hf_medtl import MedtlError
from hf_medtl.evaluation import modules
from hf_medtl.publish.collections import collect, publishable_models
from tests.support.commands import WAIVED, run_cli

WAIVES = [part for name in WAIVED for part in ("--waive", f"{name}=a test")]


@pytest.fixture
def folds(finished_run, tmp_path):
    """Return a cross-validation folder with two folds."""
    folder = tmp_path / "cv"
    for fold in (0, 1):
        shutil.copytree(finished_run, folder / f"fold-{fold}")
    (folder / "results.json").write_text(json.dumps({"folds": [{"fold": 0}, {"fold": 1}]}))
    return folder


def test_study_publishes_the_largest_fraction_of_the_first_seed(tmp_path):
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


def test_folds_are_pushed_to_one_collection(folds, hub, hub_changes):
    args = ("push", folds, "ci-user/brains", "--collection", "Brains, two folds", "--private", *WAIVES)
    output = run_cli(*args, "--dry_run")
    assert "would go to ci-user/brains-fold-1" in output
    assert "2 models would be in the Collection 'Brains, two folds'" in output
    assert not hub_changes()
    for _ in range(2):  # the second push changes nothing
        output = run_cli(*args)
    address = output.rpartition("Collected in ")[2].strip()
    collection = HfApi().get_collection(address.partition("/collections/")[2])
    assert (collection.title, collection.private) == ("Brains, two folds", True)
    assert [item.item_id for item in collection.items] == ["ci-user/brains-fold-0", "ci-user/brains-fold-1"]
    for name in ("ci-user/brains-fold-0", "ci-user/brains-fold-1"):
        assert HfApi().model_info(name).private
        assert [tag.name for tag in HfApi().list_repo_refs(name).tags] == ["v1"]


def test_damaged_fold_prevents_every_upload(folds, hub_changes):
    (folds / "fold-1" / "model.safetensors").unlink()
    with pytest.raises(MedtlError, match=r"fold-1/model.safetensors is missing"):
        run_cli("push", folds, "ci-user/bad", *WAIVES)
    assert not hub_changes()


def test_failed_collection_raises_the_reason(fail_requests):
    fail_requests({"path": "/api/collections", "status": 403, "times": 9})
    with pytest.raises(MedtlError, match=r"could not be created .* no write access here"):
        collect("Ours", ["http://127.0.0.1/ci-user/model"])


@pytest.mark.parametrize("name", modules.NAMES)
def test_pushed_metric_loads_by_repo_id(name, hub, hub_changes):
    repo, api = f"ci-user/{name}", HfApi()
    output = run_cli("metric", "push", name, repo, "--dry_run")
    assert "app.py" in output
    assert f"{name}.py" in output
    assert not hub_changes()
    assert f"/spaces/{repo}" in run_cli("metric", "push", name, repo)
    commits = len(api.list_repo_commits(repo, repo_type="space"))
    run_cli("metric", "push", name, repo)
    assert len(api.list_repo_commits(repo, repo_type="space")) == commits
    assert evaluate.load(repo).name == name


def test_rejects_metric_repo_with_another_name(hub, hub_changes):
    with pytest.raises(MedtlError, match="give OWNER/clinical_metrics, found ci-user/mine"):
        run_cli("metric", "push", "clinical_metrics", "ci-user/mine")
    with pytest.raises(MedtlError, match="Expected a module among"):
        run_cli("metric", "push", "accuracy", "ci-user/accuracy")
    assert not hub_changes()


def test_metric_without_write_access_raises(fail_requests):
    fail_requests({"path": "/tree/", "status": 403, "times": 9})
    with pytest.raises(MedtlError, match=r"could not be uploaded .* no write access here"):
        run_cli("metric", "push", "clinical_metrics", "ci-user/clinical_metrics")
