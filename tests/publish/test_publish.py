"""What is refused before anything is sent, and what a push is."""

import json

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

from hf_medtl import MedtlError, Predictor, Recipe, run
from hf_medtl.publish.check import missing_fields
from hf_medtl.publish.hub import commit_files, plan_upload, push, with_retries
from tests.support.commands import COMMAND, options, script

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


def cut(name):
    def spoil(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return spoil


def burn(folder):
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "UNFINISHED").touch(), "not a finished run"),
        (lambda folder: (folder / "model.safetensors").unlink(), "missing or damaged"),
        (lambda folder: (folder / "recipe.yaml").unlink(), "has no recipe.yaml"),
        (truncate, "missing or damaged"),
        (burn, "training diverged"),
        (replace("results.json", '"value": ', '"value": NaN, "was": '), "NaN is not a result"),
        (replace("config.json", "{", ""), "is damaged"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "has no preprocessor_config.json"),
        (cut("splits.csv"), "not the split that the model was tested on"),
        (cut("predictions.csv"), "does not have the .* tested images"),
        (lambda folder: (folder / "predictions.csv").unlink(), "missing or damaged"),
        (cut("figures/roc.png"), "figures/roc.png is damaged"),
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
def test_nothing_is_sent_of_a_run_with(spoil, words, hub, ready, written):
    spoil(ready)
    with pytest.raises(MedtlError, match=words) as error:
        push(ready, "ci-user/spoilt")
    assert PLANTED not in str(error.value)
    assert not written()
    assert not HfApi().repo_exists("ci-user/spoilt")


def test_a_card_that_the_hub_refuses_makes_no_repository(ready, failing, written):
    failing({"path": "/validate-yaml", "status": 400, "times": 99})
    with pytest.raises(MedtlError, match="The Hub refuses the metadata"):
        push(ready, "ci-user/unheard")
    assert not written()


def test_what_an_earlier_run_had_alone_goes(hub, ready):
    api, name = HfApi(), "ci-user/changed"
    (ready / "evaluations.json").write_text("[]")
    push(ready, name)
    api.upload_file(repo_id=name, path_or_fileobj=b"All rights.", path_in_repo="LICENSE")
    assert api.file_exists(name, "evaluations.json")
    (ready / "evaluations.json").unlink()
    push(ready, name)
    files = set(api.list_repo_files(name))
    assert "evaluations.json" not in files
    assert {"LICENSE", ".gitattributes", "model.safetensors"} <= files


def note(folder):
    """Text in a PNG, as programs put it there."""
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
        (note, "figures/roc.png"),
        (name_weights, "model.safetensors"),
    ],
    ids=["text", "in a picture", "in the weights' header"],
)
def test_the_token_in_use_is_no_part_of_what_is_sent(plant, name, ready, monkeypatch):
    plan_upload(ready)
    monkeypatch.setenv("HF_TOKEN", "secret-of-another-kind")
    plant(ready)
    with pytest.raises(MedtlError, match=f"{name} holds an access token"):
        plan_upload(ready)


def test_neither_a_reason_nor_any_other_file_brings_a_token_in(hub, ready, written):
    before = (ready / "README.md").read_text()
    with pytest.raises(MedtlError, match="--waive limits holds an access token") as error:
        push(ready, "ci-user/waived", waive={"limits": f"see {PLANTED}"})
    assert PLANTED not in str(error.value)
    assert (ready / "README.md").read_text() == before
    (ready / "notes.bin").write_bytes(b"\0" + PLANTED.encode() + b"\0")
    with pytest.raises(MedtlError, match=r"its/notes.bin holds an access token"):
        commit_files(HfApi(), "ci-user/waived", {"its/notes.bin": ready / "notes.bin"}, "A file")
    assert not written()


def test_a_card_without_prose_is_refused_before_training(phantoms, tiny, tmp_path):
    with pytest.raises(MedtlError, match="does not give intended use and users, out-of-scope uses, limits"):
        run(Recipe(**options(phantoms, tiny("vit"), tmp_path / "run", push_to_hub=True)))
    assert not (tmp_path / "run").exists()


def test_one_commit_one_tag_and_the_new_name(hub, ready, phantoms):
    api = HfApi()
    replace("README.md", "## Limits", "## Bounds")(ready)
    address = push(ready, "ci-user/named", waive={"limits": "they are\nin the paper"})
    assert address.endswith("ci-user/named")
    push(ready, "ci-user/named")
    assert [commit.title for commit in api.list_repo_commits("ci-user/named")].count("Upload run") == 1
    assert [tag.name for tag in api.list_repo_refs("ci-user/named").tags] == ["v1"]
    card = ModelCard.load("ci-user/named")
    assert "- limits is not given: they are in the paper" in card.text
    assert 'model="ci-user/named"' in card.text
    assert card.data.model_name == "ci-user/named"
    assert "limits" not in missing_fields(card.content, json.loads((ready / "results.json").read_text()))
    replace("README.md", "## Intended use", "Better words.\n\n## Intended use")(ready)
    push(ready, "ci-user/named")
    assert [tag.name for tag in api.list_repo_refs("ci-user/named").tags] == ["v1", "v2"]
    picture = next(phantoms.glob("lesion/*.png"))
    for revision in ("v1", "v2"):
        assert Predictor.from_pretrained("ci-user/named", revision=revision).predict(picture)[0].label


def test_other_errors_are_not_tried_again():
    asked = []

    def ask():
        asked.append(1)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        with_retries(ask)
    assert len(asked) == 1
    assert issubclass(HfHubHTTPError, OSError)


def test_the_commands(hub, ready):
    done = script(COMMAND, "push", ready, "ci-user/by-command", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in done.stdout
    assert "Nothing was sent" in done.stdout
    assert not HfApi().repo_exists("ci-user/by-command")
    done = script(COMMAND, "push", ready, "ci-user/by-command", "--private")
    assert done.returncode == 0, done.stderr
    assert HfApi().model_info("ci-user/by-command").private
    done = script(COMMAND, "card", "check", ready)
    assert done.returncode == 0, done.stderr
    assert "not yet  external: a test on another data set" in done.stdout
    replace("README.md", "Out of scope:", "Beyond:")(ready)
    done = script(COMMAND, "card", "check", ready)
    assert done.returncode == 1
    assert "MISSING  out_of_scope" in done.stdout
    done = script(COMMAND, "push", ready, "ci-user/by-command", "--waive", "scope=none")
    assert done.returncode == 1
    assert "--waive is FIELD=REASON" in done.stderr
