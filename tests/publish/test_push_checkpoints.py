"""CheckpointUploader on the Hub by --hub_strategy: on a branch that says what it is, and never on main."""

import logging
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download
from transformers import AutoModelForImageClassification

from hf_medtl import MedtlError, Recipe, run
from hf_medtl.publish.checkpoints import BRANCH, STAGING_FOLDER, CheckpointUploader
from hf_medtl.training.checkpoints import find_damage
from tests.support.commands import ROOT, options

CARD = str(ROOT / "model_cards" / "phantoms.md")


@pytest.fixture
def published(hub, phantoms, tiny, tmp_path):
    """Run with a strategy; the run folder and the repository."""

    def train(strategy: str, family: str = "vit", name: str = "run", **more: object):
        repo = f"ci-user/checkpoints-{strategy.replace('_', '-')}-{family}"
        values = {"push_to_hub": True, "hub_model_id": repo, "hub_strategy": strategy, "model_card": CARD} | more
        return run(Recipe(**options(phantoms, tiny(family), tmp_path / name, **values))), repo

    return train


def files_of(repo: str, revision: str) -> set[str]:
    return set(HfApi().list_repo_files(repo, revision=revision))


def weights_of(place: object, **hub: object) -> dict[str, torch.Tensor]:
    return AutoModelForImageClassification.from_pretrained(place, **hub).state_dict()


@pytest.mark.parametrize(
    ("strategy", "folders"),
    [
        ("every_save", set()),
        ("checkpoint", {"last-checkpoint"}),
        ("all_checkpoints", {"checkpoint-4", "checkpoint-8", "checkpoint-12"}),
    ],
)
def test_a_branch_has_what_the_strategy_says(strategy, folders, published, tmp_path):
    folder, repo = published(strategy, num_train_epochs=3, save_total_limit=1)
    files = files_of(repo, BRANCH)
    assert {name.partition("/")[0] for name in files if "/" in name} == folders
    root = {
        ".gitattributes",
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "recipe.yaml",
    }
    assert {name for name in files if "/" not in name} == root | {"splits.csv"}
    card = ModelCard.load(Path(hf_hub_download(repo, "README.md", revision=BRANCH)))
    assert "Not finished, not tested, not calibrated" in card.text
    assert "step 12 (epoch 3 of 3)" in card.text
    assert card.data.eval_results is None
    assert card.data.pipeline_tag is None  # no widget, no page that offers it for use
    newest = weights_of(folder / "checkpoint-12")
    assert all(torch.equal(its, newest[name]) for name, its in weights_of(repo, revision=BRANCH).items())
    for name in folders:
        there = snapshot_download(repo, revision=BRANCH, allow_patterns=f"{name}/*", local_dir=tmp_path / "there")
        assert find_damage(tmp_path / "there" / name) is None, there
    # main: the finished run alone
    assert not {name for name in files_of(repo, "main") if name.startswith(("checkpoint", "last-"))}
    main = weights_of(repo)
    assert all(torch.equal(its, main[name]) for name, its in weights_of(folder).items())
    assert not any(torch.equal(its, newest[name]) for name, its in main.items() if name == "classifier.weight")
    assert len([commit for commit in HfApi().list_repo_commits(repo) if commit.title != "initial commit"]) == 1
    assert not (folder / STAGING_FOLDER).exists()
    assert not [*folder.rglob("*.bin")]


def test_main_is_empty_until_the_run_is_finished(published, monkeypatch, written):
    def killed(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_medtl.runs.train.save", killed)
    with pytest.raises(KeyboardInterrupt):
        published("every_save", "cnn")
    repo = "ci-user/checkpoints-every-save-cnn"
    assert files_of(repo, "main") == {".gitattributes"}
    assert {"cnn.py", "model.safetensors", "README.md"} <= files_of(repo, BRANCH)
    assert written().count("/api/repos/create") == 1


def test_training_goes_on_elsewhere_to_the_same_weights(published, tmp_path, phantoms, tiny):
    folder, repo = published("all_checkpoints", "deit")
    snapshot_download(repo, revision=BRANCH, allow_patterns="checkpoint-4/*", local_dir=tmp_path / "resumed")
    checkpoint = str(tmp_path / "resumed" / "checkpoint-4")
    values = options(phantoms, tiny("deit"), tmp_path / "resumed", resume_from_checkpoint=checkpoint)
    again = weights_of(run(Recipe(**values)))
    assert all(torch.equal(its, again[name]) for name, its in weights_of(folder).items())


def test_a_second_run_leaves_nothing_of_the_first(published):
    _, repo = published("all_checkpoints", "convnext", "first", num_train_epochs=2)
    assert "checkpoint-8/config.json" in files_of(repo, BRANCH)
    published("all_checkpoints", "convnext", "second", num_train_epochs=1, seed=2)
    assert {name.partition("/")[0] for name in files_of(repo, BRANCH) if "/" in name} == {"checkpoint-4"}


def test_uploads_that_fail_do_not_stop_training(published, failing, caplog):
    failing({"path": f"/commit/{BRANCH}", "status": 403, "times": 99})
    with caplog.at_level(logging.WARNING, "hf_medtl"):
        folder, repo = published("every_save", "swin")
    said = [record.getMessage() for record in caplog.records if "checkpoint of step" in record.getMessage()]
    assert len(said) == 2
    assert "no write access here" in said[0]
    assert (folder / "results.json").exists()
    assert "model.safetensors" in files_of(repo, "main")
    assert "README.md" not in files_of(repo, BRANCH)


@pytest.mark.parametrize(
    ("strategy", "always", "expected"),
    [("every_save", False, [1, 3]), ("every_save", True, [1, 2, 3]), ("all_checkpoints", False, [1, 2, 3])],
)
def test_what_comes_while_another_is_uploaded(strategy, always, expected, monkeypatch, tmp_path):
    sent, free = [], threading.Event()

    def upload(copy: object, facts: dict) -> None:
        sent.append(facts["step"])
        free.wait(0.2 if always or strategy == "all_checkpoints" else 60)

    uploads = CheckpointUploader("ci-user/slow", "mit")
    monkeypatch.setattr(uploads, "_upload", upload)
    args = SimpleNamespace(output_dir=tmp_path, hub_strategy=strategy, hub_always_push=always, num_train_epochs=1.0)
    for step in (1, 2, 3):
        (tmp_path / f"checkpoint-{step}").mkdir()
        state = SimpleNamespace(is_world_process_zero=True, global_step=step, epoch=1.0)
        uploads.on_save(args, state, None)
        uploads.on_save(args, SimpleNamespace(is_world_process_zero=False), None)  # another process
    free.set()
    uploads.on_train_end(args, state, None)
    assert sent == expected


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hub_strategy": "every_save"}, "Give --push_to_hub, too"),
        ({"push_to_hub": True, "hub_revision": "v2"}, "--hub_revision: finished runs go to the branch main"),
    ],
)
def test_what_would_be_ignored_is_refused(values, words, phantoms, tiny, tmp_path):
    with pytest.raises(MedtlError, match=words):
        Recipe(**options(phantoms, tiny("vit"), tmp_path / "run", **values))


@pytest.mark.parametrize(("status", "words"), [(401, "does not know the token"), (403, "no write access here")])
def test_whoever_may_not_write_learns_so_before_training(status, words, published, failing, tmp_path):
    failing({"path": "/repos/create", "status": status, "times": 99})
    with pytest.raises(MedtlError, match=f"{words}.*Nothing was trained"):
        published("end")
    assert not (tmp_path / "run").exists()


def test_an_unknown_licence_is_refused_before_training(published, tmp_path):
    with pytest.raises(MedtlError, match="knows no licence 'ours'"):
        published("end", model_license="ours")
    assert not (tmp_path / "run").exists()
