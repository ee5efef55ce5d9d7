"""CheckpointUploader: checkpoints go by --hub_strategy to a branch with its own card, never to main."""

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
from hf_medtl.runs import preflight
from hf_medtl.training.checkpoints import find_damage
from tests.support.commands import ROOT, options

CARD = str(ROOT / "model_cards" / "phantoms.md")


@pytest.fixture
def train_and_push(hub, phantoms, tiny_checkpoint, tmp_path):
    """Return a function that trains with a hub strategy and returns the run folder and the repository."""

    def train(strategy: str, family: str = "vit", name: str = "run", **overrides: object):
        repo = f"ci-user/checkpoints-{strategy.replace('_', '-')}-{family}"
        values = {"push_to_hub": True, "hub_model_id": repo, "hub_strategy": strategy, "model_card": CARD} | overrides
        return run(Recipe(**options(phantoms, tiny_checkpoint(family), tmp_path / name, **values))), repo

    return train


def list_files(repo: str, revision: str) -> set[str]:
    return set(HfApi().list_repo_files(repo, revision=revision))


def load_weights(source: object, **hub: object) -> dict[str, torch.Tensor]:
    return AutoModelForImageClassification.from_pretrained(source, **hub).state_dict()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "folders"),
    [
        ("every_save", set()),
        ("checkpoint", {"last-checkpoint"}),
        ("all_checkpoints", {"checkpoint-4", "checkpoint-8", "checkpoint-12"}),
    ],
)
def test_branch_has_checkpoints_of_the_strategy(strategy, folders, train_and_push, tmp_path):
    folder, repo = train_and_push(strategy, num_train_epochs=3, save_total_limit=1)
    files = list_files(repo, BRANCH)
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
    assert card.data.pipeline_tag is None  # so the Hub offers no inference widget
    newest = load_weights(folder / "checkpoint-12")
    assert all(torch.equal(tensor, newest[name]) for name, tensor in load_weights(repo, revision=BRANCH).items())
    for name in folders:
        local = snapshot_download(repo, revision=BRANCH, allow_patterns=f"{name}/*", local_dir=tmp_path / "there")
        assert find_damage(tmp_path / "there" / name) is None, local
    # main has only the finished run
    assert not {name for name in list_files(repo, "main") if name.startswith(("checkpoint", "last-"))}
    main = load_weights(repo)
    assert all(torch.equal(tensor, main[name]) for name, tensor in load_weights(folder).items())
    assert not any(torch.equal(tensor, newest[name]) for name, tensor in main.items() if name == "classifier.weight")
    assert len([commit for commit in HfApi().list_repo_commits(repo) if commit.title != "initial commit"]) == 1
    assert not (folder / STAGING_FOLDER).exists()
    assert not [*folder.rglob("*.bin")]


@pytest.mark.slow
def test_main_is_empty_until_the_run_is_finished(train_and_push, monkeypatch, hub_changes):
    def killed(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_medtl.runs.train.save", killed)
    with pytest.raises(KeyboardInterrupt):
        train_and_push("every_save", "cnn")
    repo = "ci-user/checkpoints-every-save-cnn"
    assert list_files(repo, "main") == {".gitattributes"}
    assert {"cnn.py", "model.safetensors", "README.md"} <= list_files(repo, BRANCH)
    assert hub_changes().count("/api/repos/create") == 1


@pytest.mark.slow
def test_resumes_from_downloaded_checkpoint_to_the_same_weights(train_and_push, tmp_path, phantoms, tiny_checkpoint):
    folder, repo = train_and_push("all_checkpoints", "deit")
    snapshot_download(repo, revision=BRANCH, allow_patterns="checkpoint-4/*", local_dir=tmp_path / "resumed")
    checkpoint = str(tmp_path / "resumed" / "checkpoint-4")
    values = options(phantoms, tiny_checkpoint("deit"), tmp_path / "resumed", resume_from_checkpoint=checkpoint)
    again = load_weights(run(Recipe(**values)))
    assert all(torch.equal(tensor, again[name]) for name, tensor in load_weights(folder).items())


@pytest.mark.slow
def test_second_run_deletes_checkpoints_of_the_first(train_and_push):
    _, repo = train_and_push("all_checkpoints", "convnext", "first", num_train_epochs=2)
    assert "checkpoint-8/config.json" in list_files(repo, BRANCH)
    train_and_push("all_checkpoints", "convnext", "second", num_train_epochs=1, seed=2)
    assert {name.partition("/")[0] for name in list_files(repo, BRANCH) if "/" in name} == {"checkpoint-4"}


@pytest.mark.slow
def test_failed_uploads_do_not_stop_training(train_and_push, fail_requests, caplog):
    fail_requests({"path": f"/commit/{BRANCH}", "status": 403, "times": 99})
    with caplog.at_level(logging.WARNING, "hf_medtl"):
        folder, repo = train_and_push("every_save", "swin")
    warnings = [record.getMessage() for record in caplog.records if "checkpoint of step" in record.getMessage()]
    assert len(warnings) == 2
    assert "no write access here" in warnings[0]
    assert (folder / "results.json").exists()
    assert "model.safetensors" in list_files(repo, "main")
    assert "README.md" not in list_files(repo, BRANCH)


@pytest.mark.parametrize(
    ("strategy", "always", "expected"),
    [("every_save", False, [1, 3]), ("every_save", True, [1, 2, 3]), ("all_checkpoints", False, [1, 2, 3])],
)
def test_checkpoints_during_an_upload_are_skipped_or_queued(strategy, always, expected, monkeypatch, tmp_path):
    steps, released = [], threading.Event()

    def upload(copy: object, facts: dict) -> None:
        steps.append(facts["step"])
        released.wait(0.2 if always or strategy == "all_checkpoints" else 60)

    uploads = CheckpointUploader("ci-user/slow", {"license": "mit"})
    monkeypatch.setattr(uploads, "_upload", upload)
    args = SimpleNamespace(output_dir=tmp_path, hub_strategy=strategy, hub_always_push=always, num_train_epochs=1.0)
    for step in (1, 2, 3):
        (tmp_path / f"checkpoint-{step}").mkdir()
        state = SimpleNamespace(is_world_process_zero=True, global_step=step, epoch=1.0)
        uploads.on_save(args, state, None)
        uploads.on_save(args, SimpleNamespace(is_world_process_zero=False), None)  # a process other than the main one
    released.set()
    uploads.on_train_end(args, state, None)
    assert steps == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hub_strategy": "every_save"}, "has no effect without --push_to_hub. Add --push_to_hub"),
        ({"push_to_hub": True, "hub_revision": "v2"}, "--hub_revision: finished runs go to the branch main"),
    ],
)
def test_rejects_hub_options_that_would_be_ignored(values, message, phantoms, tiny_checkpoint, tmp_path):
    with pytest.raises(MedtlError, match=message):
        Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "run", **values))


@pytest.mark.parametrize(("status", "message"), [(401, "does not know the token"), (403, "no write access here")])
def test_missing_write_access_raises_before_training(status, message, train_and_push, fail_requests, tmp_path):
    fail_requests({"path": "/repos/create", "status": status, "times": 99})
    with pytest.raises(MedtlError, match=f"{message}.*Nothing was trained"):
        train_and_push("end")
    assert not (tmp_path / "run").exists()


def test_unknown_licence_raises_before_training(train_and_push, tmp_path):
    with pytest.raises(MedtlError, match="knows no licence 'ours'"):
        train_and_push("end", model_license="ours")
    assert not (tmp_path / "run").exists()


def test_read_only_token_and_refused_card_raise_before_training(hub, train_and_push, fail_requests, tmp_path):
    HfApi().create_repo("ci-user/checkpoints-end-vit", exist_ok=True)
    fail_requests({"path": "/auth-check/write", "status": 403, "times": 1})
    with pytest.raises(MedtlError, match=r"no write access here.*Nothing was trained"):
        train_and_push("end")
    fail_requests({"path": "/validate-yaml", "status": 400, "times": 1})
    with pytest.raises(MedtlError, match=r"The Hub .* card.*Nothing was trained"):
        train_and_push("end")
    assert not (tmp_path / "run").exists()


def test_name_and_token_are_checked_without_the_network(phantoms, tiny_checkpoint, tmp_path, monkeypatch):
    def check(**values):
        more = {"push_to_hub": True, "model_card": CARD, **values}
        preflight.check_options(Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "run", **more)))

    check(hub_model_id="owner/name")
    for name in ("my model", "a/b/c", "name.git"):
        with pytest.raises(MedtlError, match=f"--hub_model_id '{name}' can't be the name of a repository"):
            check(hub_model_id=name)
    monkeypatch.setattr("hf_medtl.publish.hub.get_token", lambda: None)
    with pytest.raises(MedtlError, match="--push_to_hub needs a token"):
        check()
