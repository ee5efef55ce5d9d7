"""The `hf-medtl` command line: help, spelling of options, and the data commands."""

import io
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from huggingface_hub import HfApi
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from hf_medtl import MedtlError, load, read_image
from hf_medtl.cli.app import app, expand_home
from hf_medtl.cli.options import EXPORT_FORMATS, MAP_METHODS
from hf_medtl.explain.maps import METHODS
from hf_medtl.export.export import FORMATS
from hf_medtl.version import __version__
from tests.support.commands import COMMAND, run_cli, run_command
from tests.support.image_files import write_noise_image
from tests.support.killed import leave_killed


@pytest.fixture(autouse=True)
def small_forest(monkeypatch):
    """Use a forest of few trees in audits, whose findings are tested elsewhere."""
    monkeypatch.setattr("hf_medtl.data.shortcuts.TREES", 5)


@pytest.mark.slow
def test_help_names_every_command_and_errors_have_no_traceback(tmp_path):
    assert all(word in run_cli("data", "--help") for word in ("list", "fetch", "audit", "preview", "push"))
    process = run_command(COMMAND, "data", "audit", "brain-tumor-mri", "--data_dir", tmp_path)
    assert process.returncode == 1
    assert "does not look like Brain MRI" in process.stderr
    assert "for images of your own the dataset is imagefolder" in process.stderr
    assert "Traceback" not in process.stderr


def all_commands(command, names=()):
    """Yield each command of a group, with its name as typed."""
    yield names, command
    for name, child in getattr(command, "commands", {}).items():
        yield from all_commands(child, (*names, name))


def test_help_shows_one_spelling_of_each_option():
    count = 0
    for path, command in all_commands(get_command(app)):
        for parameter in command.params:
            options = [name for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("--")]
            assert not [name for name in options if path and "-" in name[2:]], path
            count += len(options)
    assert count > 80


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--data_dir", "--data-dir"])
def test_options_take_dashes_and_underscores(option, phantoms):
    assert "48 images" in run_cli("data", "audit", "brain-phantoms", option, phantoms)
    assert "48 images" in run_cli("data", "audit", "brain-phantoms", f"{option}={phantoms}")


def test_every_command_has_an_example_that_it_understands():
    for path, command in all_commands(get_command(app)):
        if path and not getattr(command, "commands", {}) and path != ("train",):
            words = shlex.split(command.epilog.removeprefix("Example: "))
            assert tuple(words[1 : 1 + len(path)]) == path
            names = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
            assert {word for word in words if word.startswith("--")} <= names, path


def test_without_a_command_the_help_is_shown_and_typos_get_a_suggestion():
    for words in ([], ["data"], ["card"], ["metric"]):
        result = CliRunner().invoke(app, words)
        assert (result.exit_code, "Usage" in result.output) == (0, True), words
    assert all(f"─ {panel} ─" in run_cli() for panel in ("Data", "Train", "Judge", "Publish", "Serve"))
    assert run_cli("--version").split()[1] == __version__
    for words, suggestion in (("trian", "train"), ("data lits", "list")):  # codespell:ignore trian,lits
        assert f"'{suggestion}'" in CliRunner().invoke(app, words.split()).output


@pytest.mark.parametrize(
    ("word", "expected"),
    [("~/a", "HOME/a"), ("--out=~/a=~/b", "--out=HOME/a=~/b"), ("imagefolder=~", "imagefolder=HOME"), ("a~/b", "a~/b"),
     ("~other/x", "~other/x"), ("--labels=a=~b", "--labels=a=~b")],
)  # fmt: skip
def test_home_folder_is_expanded_at_the_start_of_values(word, expected):
    assert expand_home(word) == expected.replace("HOME", str(Path.home()))


@pytest.mark.parametrize("model", ["/no/such/run", "./absent", "runs/absent", "a/b/c"])
def test_missing_model_folder_is_an_error_at_once(model):
    result = CliRunner().invoke(app, ["predict", model, "image.png"])
    assert isinstance(result.exception, MedtlError)
    assert f"The folder {model} does not exist" in str(result.exception)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("report NOWHERE --out r.html", "NOWHERE does not exist"),
        ("report . --out r.html", ". is not a finished run"),
        ("report . --out r.pdf", r"--out is a file that ends with .html"),
        ("compare NOWHERE runs/b", "NOWHERE does not exist"),
        ("ensemble runs/dmo runs/b --output_dir both", r"runs/dmo does not exist. Did you mean 'runs/demo'\?"),
        ("export NOWHERE", "NOWHERE does not exist"),
        ("export . --format onxx", r"--format is one of onnx, openvino, but found 'onxx'. Did you mean 'onnx'\?"),
        ("evaluate NOWHERE --data_dir .", "The folder NOWHERE does not exist"),
        ("evaluate runs/demo --data_dir absent", "absent does not exist"),
        ("evaluate runs/demo --data_dir . --split tets", "--split is one of .* Did you mean 'test'"),
        ("evaluate runs/demo --data_dir . --figures jpg", "--figures takes png, pdf, svg"),
        ("evaluate runs/demo --dataset brain-fantoms", "Unknown dataset 'brain-fantoms'.* Did you mean"),
        ("explain demo", "The folder demo does not exist. Did you mean 'runs/demo'"),
        ("explain runs/demo --method gradcan", "--method is one of .* Did you mean 'gradcam'"),
        ("predict runs/demo x.png --explain gradcan", "--explain is one of .* Did you mean 'gradcam'"),
        ("predict runs/demo x.png --out x.txt", "--out is a file that ends with .csv or .jsonl or .parquet"),
        ("push NOWHERE owner/name", "NOWHERE does not exist"),
        ("card check NOWHERE", "NOWHERE does not exist"),
        ("card write NOWHERE", "NOWHERE does not exist"),
        ("space --models NOWHERE", "The folder NOWHERE does not exist"),
        ("space push owner/name --models NOWHERE", "The folder NOWHERE does not exist"),
        ("data audit imagefolder --data_dir absent", "absent does not exist"),
        ("data preview brain-phantoms --augmentation brian", "--augmentation is one of .* Did you mean 'brain'"),
    ],
)
def test_wrong_arguments_are_errors_before_heavy_imports(words, message, tmp_path, monkeypatch):
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for module in (
        "hf_medtl.report.build",
        "hf_medtl.runs",
        "hf_medtl.export.export",
        "hf_medtl.space",
        "hf_medtl.predict",
    ):
        monkeypatch.setitem(sys.modules, module, None)  # its import fails
    error = CliRunner().invoke(app, shlex.split(words)).exception
    assert isinstance(error, MedtlError), error
    assert re.match(message, str(error))


def test_choices_of_commands_are_those_of_their_modules():
    assert tuple(FORMATS) == EXPORT_FORMATS, "EXPORT_FORMATS in cli/options.py and FORMATS of hf_medtl.export differ"
    assert tuple(METHODS) == MAP_METHODS, "MAP_METHODS in cli/options.py and METHODS in explain/maps.py differ"


def test_unknown_option_suggests_the_nearest():
    result = CliRunner().invoke(app, ["export", "run", "--data-dirr", "here"])
    assert result.exit_code == 2
    assert "--data_dir" in result.output


def test_lists_and_fetches_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MEDTL_CACHE", str(tmp_path))
    monkeypatch.setattr("hf_medtl.data.phantoms.write_phantoms", lambda folder, kind, **_: folder)
    assert "253 images: no_tumor, tumor" in run_cli("data", "list")
    assert run_cli("data", "fetch", "brain-phantoms").startswith(str(tmp_path))


@pytest.mark.slow
def test_audit_writes_json_and_html(phantoms, tmp_path):
    shutil.copytree(phantoms, tmp_path / "brain")
    first, second = sorted((tmp_path / "brain" / "lesion").iterdir())[:2]
    shutil.copy(first, second)
    printed = run_cli(
        "data", "audit", "brain-phantoms", "--data_dir", tmp_path / "brain", "--out", tmp_path / "out",
        "--other", f"brain-phantoms={phantoms}",
    )  # fmt: skip
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert audit["exact_redundant"] == 1
    assert audit["n"] == 48
    assert "48 images" in printed
    assert "<img" in (tmp_path / "out" / "audit.html").read_text()


def test_preview_writes_a_grid_and_rejects_unknown_steps(phantoms, tmp_path):
    out = tmp_path / "new" / "grid.png"
    printed = run_cli("data", "preview", "brain-phantoms", "--data_dir", phantoms, "--augmentation", "brain",
                    "--out", out, "--preprocessing", "brain_crop,clahe", "--size", 64, "--samples", 2)  # fmt: skip
    assert str(out) in printed
    assert min(Image.open(out).size) > 200
    with pytest.raises(MedtlError, match="brain_crop"):
        run_cli("data", "preview", "brain-phantoms", "--data_dir", phantoms, "--preprocessing", "crop_brain")


@pytest.mark.slow
def test_pushed_dataset_loads_equal(hub, phantoms, tmp_path):
    repo = "ci/phantoms"
    run_cli("data", "push", "brain-phantoms", repo, "--data_dir", phantoms)
    assert len(HfApi().list_repo_commits(repo, repo_type="dataset")) <= 2  # the initial commit and the upload
    run_cli("data", "push", "brain-phantoms", repo, "--data_dir", phantoms)

    original, pushed = load("brain-phantoms", phantoms), datasets.load_dataset(repo)
    for split, rows in original.splits().items():
        assert set(pushed[split].column_names) == {"image", "mask", "label", "patient", "source", "image_id"}
        assert pushed[split].features["label"].names == ["no_lesion", "lesion"]
        for row, pushed_row in zip(rows, pushed[split], strict=True):
            assert (pushed_row["image_id"], pushed_row["label"]) == (row["image_id"], row["label"])
            np.testing.assert_array_equal(
                np.asarray(pushed_row["image"].convert("RGB")), read_image(row["image"]["path"])
            )
            assert pushed_row["mask"].mode == "L"
    again = load(repo)
    assert again.counts() == original.counts()
    assert sorted(again.table["group"].value_counts()) == sorted(original.table["group"].value_counts())
    files = set(HfApi().list_repo_files(repo, repo_type="dataset"))
    assert {"README.md", "splits.csv", "audit/audit.json", "audit/audit.html"} <= files


@pytest.mark.slow
def test_push_requires_licence_or_rights_and_strips_metadata(hub, tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "Erika Mustermann"
    for i in range(12):
        for label in ("a", "b"):
            file = write_noise_image(tmp_path / "in" / label / f"{i}.jpg", i + 100 * (label == "b"))
            Image.open(file).save(file, exif=exif, comment=b"Erika Mustermann")
    with pytest.raises(MedtlError, match="licence of Folder of images is unknown"):
        run_cli("data", "push", "imagefolder", "ci/refused", "--data_dir", tmp_path / "in")
    assert not HfApi().repo_exists("ci/refused", repo_type="dataset")
    printed = run_cli("data", "push", "imagefolder", "ci/refused", "--data_dir", tmp_path / "in", "--rights_held",
                    "--dry_run", "--out", leave_killed(tmp_path / "out"))  # fmt: skip
    assert "nothing was uploaded" in printed
    assert not HfApi().repo_exists("ci/refused", repo_type="dataset")
    assert "license: other" in (tmp_path / "out" / "README.md").read_text()
    stored = datasets.load_dataset(str(tmp_path / "out"), split="train").cast_column(
        "image", datasets.Image(decode=False)
    )
    for row in stored:
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert (image.format, image.info) == ("PNG", {})
