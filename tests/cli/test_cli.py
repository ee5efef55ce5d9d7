"""The `hf-medtl` command line: help, spelling of options, and the data commands."""

import io
import json
import shutil

import datasets
import numpy as np
import pytest
from huggingface_hub import HfApi
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from hf_medtl import MedtlError, load, read_image
from hf_medtl.cli.main import app
from tests.support.commands import COMMAND, script, typed
from tests.support.image_files import picture


def test_help_names_every_command_and_errors_have_no_traceback(tmp_path):
    assert all(word in typed("data", "--help") for word in ("list", "fetch", "audit", "preview", "push"))
    done = script(COMMAND, "data", "audit", "brain-tumor-mri", "--data_dir", tmp_path)
    assert done.returncode == 1
    assert "does not look like Brain MRI" in done.stderr
    assert "Traceback" not in done.stderr


def all_commands(command, path=()):
    """Yield each command of a group, with its name as typed."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from all_commands(child, (*path, name))


def test_help_shows_one_spelling_of_each_option():
    shown = 0
    for path, command in all_commands(get_command(app)):
        for parameter in command.params:
            options = [name for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("--")]
            assert not [name for name in options if path and "-" in name[2:]], path
            shown += len(options)
    assert shown > 80


@pytest.mark.parametrize("option", ["--data_dir", "--data-dir"])
def test_options_take_dashes_and_underscores(option, phantoms):
    assert "48 images" in typed("data", "audit", "brain-phantoms", option, phantoms)
    assert "48 images" in typed("data", "audit", "brain-phantoms", f"{option}={phantoms}")


def test_an_option_of_no_command_suggests_the_nearest_one():
    result = CliRunner().invoke(app, ["export", "run", "--data-dirr", "here"])
    assert result.exit_code == 2
    assert "--data_dir" in result.output


def test_list_and_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MEDTL_CACHE", str(tmp_path))
    monkeypatch.setattr("hf_medtl.data.phantoms.write_phantoms", lambda folder, kind, **_: folder)
    assert "253 images: no_tumor, tumor" in typed("data", "list")
    assert typed("data", "fetch", "brain-phantoms").startswith(str(tmp_path))


def test_audit(phantoms, tmp_path):
    shutil.copytree(phantoms, tmp_path / "brain")
    first, second = sorted((tmp_path / "brain" / "lesion").iterdir())[:2]
    shutil.copy(first, second)
    printed = typed(
        "data", "audit", "brain-phantoms", "--data_dir", tmp_path / "brain", "--out", tmp_path / "out",
        "--other", f"brain-phantoms={phantoms}",
    )  # fmt: skip
    found = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert found["exact_redundant"] == 1
    assert found["n"] == 48
    assert "48 images" in printed
    assert "<img" in (tmp_path / "out" / "audit.html").read_text()


def test_preview(phantoms, tmp_path):
    out = tmp_path / "new" / "grid.png"
    printed = typed("data", "preview", "brain-phantoms", "--data_dir", phantoms, "--augmentation", "brain",
                    "--out", out, "--preprocessing", "brain_crop,clahe", "--size", 64, "--samples", 2)  # fmt: skip
    assert str(out) in printed
    assert min(Image.open(out).size) > 200
    with pytest.raises(MedtlError, match="brain_crop"):
        typed("data", "preview", "brain-phantoms", "--data_dir", phantoms, "--preprocessing", "crop_brain")


def test_push_gives_the_same_data_set_back(hub, phantoms, tmp_path):
    repo = "ci/phantoms"
    typed("data", "push", "brain-phantoms", repo, "--data_dir", phantoms)
    assert len(HfApi().list_repo_commits(repo, repo_type="dataset")) <= 2  # the repo's first one and ours
    typed("data", "push", "brain-phantoms", repo, "--data_dir", phantoms)

    here, there = load("brain-phantoms", phantoms), datasets.load_dataset(repo)
    for split, rows in here.splits().items():
        assert set(there[split].column_names) == {"image", "mask", "label", "patient", "source", "image_id"}
        assert there[split].features["label"].names == ["no_lesion", "lesion"]
        for mine, theirs in zip(rows, there[split], strict=True):
            assert (theirs["image_id"], theirs["label"]) == (mine["image_id"], mine["label"])
            np.testing.assert_array_equal(np.asarray(theirs["image"].convert("RGB")), read_image(mine["image"]["path"]))
            assert theirs["mask"].mode == "L"
    again = load(repo)
    assert again.counts() == here.counts()
    assert sorted(again.table["group"].value_counts()) == sorted(here.table["group"].value_counts())
    files = set(HfApi().list_repo_files(repo, repo_type="dataset"))
    assert {"README.md", "splits.csv", "audit/audit.json", "audit/audit.html"} <= files


def test_push_refuses_without_the_right_and_strips_metadata(hub, tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "Erika Mustermann"
    for i in range(12):
        for label in ("a", "b"):
            file = picture(tmp_path / "in" / label / f"{i}.jpg", i + 100 * (label == "b"))
            Image.open(file).save(file, exif=exif, comment=b"Erika Mustermann")
    with pytest.raises(MedtlError, match="licence of Folder of pictures is unknown"):
        typed("data", "push", "imagefolder", "ci/refused", "--data_dir", tmp_path / "in")
    assert not HfApi().repo_exists("ci/refused", repo_type="dataset")
    printed = typed("data", "push", "imagefolder", "ci/refused", "--data_dir", tmp_path / "in", "--rights_held",
                    "--dry_run", "--out", tmp_path / "out")  # fmt: skip
    assert "nothing was uploaded" in printed
    assert not HfApi().repo_exists("ci/refused", repo_type="dataset")
    assert "license: other" in (tmp_path / "out" / "README.md").read_text()
    stored = datasets.load_dataset(str(tmp_path / "out"), split="train").cast_column(
        "image", datasets.Image(decode=False)
    )
    for row in stored:
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert (image.format, image.info) == ("PNG", {})
