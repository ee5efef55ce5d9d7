"""Pushing a run: checks before the upload, commits, tags and commands."""

import json

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

from hf_medtl import MedtlError, Predictor, Recipe, run
from hf_medtl.common.hub_errors import with_retries
from hf_medtl.publish.card_fields import missing_fields
from hf_medtl.publish.hub import _set_card_repository, commit_files, plan_upload, push
from tests.support.commands import COMMAND, options

PLANTED = "hf_" + "Ab1" * 12


def replace(name, old, new):
    def spoil(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return spoil


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def halve(name):
    def spoil(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return spoil


def set_nan_weight(folder):
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "UNFINISHED").touch(), "not a finished run"),
        (lambda folder: (folder / "model.safetensors").unlink(), "missing or damaged"),
        (lambda folder: (folder / "recipe.yaml").unlink(), "has no recipe.yaml"),
        (truncate, "model.safetensors is damaged: its header gives"),
        (set_nan_weight, "training diverged"),
        (replace("results.json", '"value": ', '"value": NaN, "was": '), "NaN is not a result"),
        (replace("config.json", "{", ""), "is damaged"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "has no preprocessor_config.json"),
        (halve("splits.csv"), "not the split that the model was tested on"),
        (halve("predictions.csv"), "does not have the .* tested images"),
        (lambda folder: (folder / "predictions.csv").unlink(), "missing or damaged"),
        (halve("figures/roc.png"), "figures/roc.png is damaged"),
        (lambda run: (run / "figures" / "roc.png").unlink(), "shows figures/roc.png, which the run does not have"),
        (lambda folder: (folder / "evaluations.json").write_text('{"value": NaN}'), "NaN is not a result"),
        (replace("README.md", "license: apache-2.0", "license: mine"), "knows no licence 'mine'"),
        (replace("README.md", "pipeline_tag: image", "pipeline_tag: picture"), "the task of its results"),
        (replace("README.md", "- type: accuracy\n      value", "- type: accuracy\n      worth"), "invalid metadata"),
        (replace("README.md", "accuracy\n      value: ", "accuracy\n      value: .nan #"), "has nan for accuracy"),
        (replace("README.md", "license: apache-2.0", "licence: mine"), "do not give license"),
        (replace("README.md", "pipeline_tag: ", "pipeline_tag: [a, "), "invalid metadata"),
        (replace("README.md", "## Limits", "## Bounds"), "does not give limits, biases"),
        (replace("recipe.yaml", "seed", f"note: {PLANTED}\nseed"), "recipe.yaml holds an access token"),
    ],
    ids=["unfinished", "no weights", "no recipe", "cut weights", "NaN weights", "NaN results", "cut config",
         "no processor", "cut split", "cut predictions", "no predictions", "cut picture", "no picture",
         "NaN evaluation", "unknown licence", "unknown task", "bad model-index", "NaN in model-index",
         "no licence", "bad metadata", "no limits", "a token"],
)  # fmt: skip
def test_rejects_invalid_run_before_upload(spoil, message, hub, publishable_run, hub_changes):
    spoil(publishable_run)
    with pytest.raises(MedtlError, match=message) as error:
        push(publishable_run, "ci-user/spoilt")
    assert PLANTED not in str(error.value)
    assert not hub_changes()
    assert not HfApi().repo_exists("ci-user/spoilt")


def test_card_serves_from_the_folder_until_it_is_pushed(publishable_run):
    readme = publishable_run / "README.md"
    serve = "pip install -r finished/requirements.txt starlette uvicorn\npython finished/handler.py --port 8000"
    assert serve in readme.read_text()
    assert "hf download" not in readme.read_text()
    for revision in ("v1", "v2"):
        _set_card_repository(readme, "owner/name", revision)
        download = f"hf download owner/name --revision {revision} --local-dir model\n"
        assert download + serve.replace("finished", "model") in readme.read_text()


def test_card_rejected_by_the_hub_creates_no_repository(publishable_run, fail_requests, hub_changes):
    fail_requests({"path": "/validate-yaml", "status": 400, "times": 99})
    with pytest.raises(MedtlError, match="The Hub refuses the metadata"):
        push(publishable_run, "ci-user/unheard")
    assert not hub_changes()


def test_push_deletes_only_files_of_the_earlier_run(hub, publishable_run):
    api, name = HfApi(), "ci-user/changed"
    (publishable_run / "evaluations.json").write_text("[]")
    push(publishable_run, name)
    api.upload_file(repo_id=name, path_or_fileobj=b"All rights.", path_in_repo="LICENSE")
    assert api.file_exists(name, "evaluations.json")
    (publishable_run / "evaluations.json").unlink()
    push(publishable_run, name)
    files = set(api.list_repo_files(name))
    assert "evaluations.json" not in files
    assert {"LICENSE", ".gitattributes", "model.safetensors"} <= files


def add_png_text(folder):
    """Add a text chunk to a PNG, as drawing programs do."""
    path = folder / "figures" / "roc.png"
    about = PngImagePlugin.PngInfo()
    about.add_text("Comment", "made with secret-of-another-kind")
    Image.open(path).save(path, pnginfo=about)


def name_weights(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder / "model.safetensors", {"format": "pt", "by": "secret-of-another-kind"})


@pytest.mark.parametrize(
    ("plant", "name"),
    [
        (replace("config.json", "{", '{"note": "secret-of-another-kind", '), "config.json"),
        (add_png_text, "figures/roc.png"),
        (name_weights, "model.safetensors"),
    ],
    ids=["text", "in a picture", "in the weights' header"],
)
def test_rejects_files_with_the_current_token(plant, name, publishable_run, monkeypatch):
    plan_upload(publishable_run)
    monkeypatch.setenv("HF_TOKEN", "secret-of-another-kind")
    plant(publishable_run)
    with pytest.raises(MedtlError, match=f"{name} holds an access token"):
        plan_upload(publishable_run)


def test_rejects_token_in_waiver_reason_and_extra_file(hub, publishable_run, hub_changes):
    before = (publishable_run / "README.md").read_text()
    with pytest.raises(MedtlError, match="--waive limits holds an access token") as error:
        push(publishable_run, "ci-user/waived", waive={"limits": f"see {PLANTED}"})
    assert PLANTED not in str(error.value)
    assert (publishable_run / "README.md").read_text() == before
    (publishable_run / "notes.bin").write_bytes(b"\0" + PLANTED.encode() + b"\0")
    with pytest.raises(MedtlError, match=r"its/notes.bin holds an access token"):
        commit_files(HfApi(), "ci-user/waived", {"its/notes.bin": publishable_run / "notes.bin"}, "A file")
    assert not hub_changes()


def test_rejects_card_without_prose_before_training(phantoms, tiny_checkpoint, tmp_path):
    with pytest.raises(MedtlError, match="does not give intended use and users, out-of-scope uses, limits"):
        run(Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "run", push_to_hub=True)))
    assert not (tmp_path / "run").exists()


def test_files_are_searched_once_and_again_if_they_change_before_the_upload(hub, publishable_run, monkeypatch):
    plan = plan_upload(publishable_run)
    searched = []
    monkeypatch.setattr("hf_medtl.publish.hub.check_secrets", lambda files: searched.append(set(files)))
    push(publishable_run, "ci-user/searched", plan=plan)
    assert searched == [{"README.md"}]  # which names the repository now
    monkeypatch.undo()
    plan = plan_upload(publishable_run)
    replace("recipe.yaml", "seed:", f"# {PLANTED}\nseed:")(publishable_run)
    with pytest.raises(MedtlError, match=r"recipe\.yaml holds an access token"):
        push(publishable_run, "ci-user/searched", plan=plan)


@pytest.mark.slow
def test_push_makes_one_commit_and_tag_and_names_the_repo(hub, publishable_run, phantoms):
    api = HfApi()
    replace("README.md", "## Limits", "## Bounds")(publishable_run)
    address = push(publishable_run, "ci-user/named", waive={"limits": "they are\nin the paper"})
    assert address.endswith("ci-user/named")
    push(publishable_run, "ci-user/named")
    assert [commit.title for commit in api.list_repo_commits("ci-user/named")].count("Upload run") == 1
    assert [tag.name for tag in api.list_repo_refs("ci-user/named").tags] == ["v1"]
    card = ModelCard.load("ci-user/named")
    assert "- limits is not given: they are in the paper" in card.text
    assert 'model="ci-user/named"' in card.text
    assert card.data.model_name == "ci-user/named"
    assert "limits" not in missing_fields(card.content, json.loads((publishable_run / "results.json").read_text()))
    replace("README.md", "## Intended use", "Better words.\n\n## Intended use")(publishable_run)
    push(publishable_run, "ci-user/named")
    assert [tag.name for tag in api.list_repo_refs("ci-user/named").tags] == ["v1", "v2"]
    image = next(phantoms.glob("lesion/*.png"))
    for revision in ("v1", "v2"):
        assert Predictor.from_pretrained("ci-user/named", revision=revision).predict(image)[0].label


def test_other_errors_are_not_retried():
    calls = []

    def fail():
        calls.append(1)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        with_retries(fail)
    assert len(calls) == 1
    assert issubclass(HfHubHTTPError, OSError)


@pytest.mark.slow
def test_push_and_card_check_commands(hub, process_pool, publishable_run):
    process = process_pool.run_script(COMMAND, "push", publishable_run, "ci-user/by-command", "--dry_run")
    assert process.returncode == 0, process.stderr
    assert "model.safetensors" in process.stdout
    assert "Nothing was sent" in process.stdout
    assert not HfApi().repo_exists("ci-user/by-command")
    process = process_pool.run_script(COMMAND, "push", publishable_run, "ci-user/by-command", "--private")
    assert process.returncode == 0, process.stderr
    assert HfApi().model_info("ci-user/by-command").private
    process = process_pool.run_script(COMMAND, "card", "check", publishable_run)
    assert process.returncode == 0, process.stderr
    assert "not yet  external: a test on another data set" in process.stdout
    replace("README.md", "Out of scope:", "Beyond:")(publishable_run)
    process = process_pool.run_script(COMMAND, "card", "check", publishable_run)
    assert process.returncode == 1
    assert "MISSING  out_of_scope" in process.stdout
    process = process_pool.run_script(COMMAND, "push", publishable_run, "ci-user/by-command", "--waive", "scope=none")
    assert process.returncode == 1
    assert "--waive is FIELD=REASON" in process.stderr
