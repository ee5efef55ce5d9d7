"""`hf-medtl train`: presets, files, own data, early errors, and notebooks."""

import logging
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from hf_medtl import MedtlError
from hf_medtl.cli.app import app
from hf_medtl.cli.train import check_early, choose_defaults, list_presets, main
from hf_medtl.common.messages import given_arguments, show_messages
from hf_medtl.training.command_line import read_options
from hf_medtl.training.presets import PRESETS
from tests.support.commands import ROOT, run_cli


@pytest.fixture
def calls(monkeypatch):
    """Collect the recipes that would run."""
    recipes = []
    monkeypatch.setattr("hf_medtl.runs.train.run", recipes.append)
    return recipes


@pytest.fixture
def notebook(monkeypatch):
    """Look like a notebook: IPython runs, and the arguments are those of its kernel."""
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: object()))
    monkeypatch.setattr(sys, "argv", ["/usr/lib/ipykernel_launcher.py", "-f", "/tmp/kernel-1.json"])
    logger = logging.getLogger("hf_medtl")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    logger.manager._clear_cache()
    yield
    logger.manager._clear_cache()


def test_lists_every_preset_on_one_line_and_each_is_complete():
    lines = list_presets().splitlines()
    for name, values in PRESETS.items():
        assert sum(line.startswith(f"  {name} ") for line in lines) == 1
        assert values["output_dir"] == f"runs/{name}"
        check_early(read_options(values, [])[0])
    assert "vit_brain" in run_cli("train")


def test_preset_yaml_and_options_make_the_recipe(calls, tmp_path):
    run_cli("train", "cnn_brain", "--num-train-epochs", 3, "--use_cpu", "--data_dir", tmp_path)
    assert (calls[0].model_name_or_path, calls[0].num_train_epochs, calls[0].data_dir) == ("cnn", 3, str(tmp_path))
    assert calls[0].head_dropout == 0.5
    (tmp_path / "recipe.yaml").write_text("model_name_or_path: cnn\nhead_dropout: 0.25\n")
    run_cli("train", tmp_path / "recipe.yaml", "--use_cpu", "--dataset=brain-phantoms")
    assert (calls[1].head_dropout, calls[1].learning_rate, calls[1].dataset) == (0.25, 2e-5, "brain-phantoms")


def test_own_data_have_defaults_by_task_and_kind(tmp_path):
    (tmp_path / "rows.csv").touch()
    assert choose_defaults(["--data_dir", str(tmp_path)]) == PRESETS["own_images"]
    assert choose_defaults(["--data-dir", str(tmp_path / "rows.csv")])["dataset"] == "table"
    assert choose_defaults(["--task=image-segmentation"]) == PRESETS["own_masks"]
    own = {"dataset": "imagefolder", "output_dir": "runs/own_images"}
    assert choose_defaults(["--data_dir", str(tmp_path), "--model_name_or_path", "m", "--learning_rate=1e-4"]) == own
    other = own | {"head_learning_rate": 1e-3, "num_train_epochs": 20}  # the head is new
    assert choose_defaults(["--data_dir", str(tmp_path), "--model_name_or_path", "timm/resnet50.a1_in1k"]) == other
    random = own | {"learning_rate": 5e-4, "num_train_epochs": 40, "early_stopping_patience": 10}  # not fine-tuned
    assert choose_defaults(["--data_dir", str(tmp_path), "--model_name_or_path", "cnn"]) == random
    assert choose_defaults(["--model_name_or_path", "timm/vgg16", "--from_scratch"]) == random
    assert choose_defaults(["--task=image-segmentation", "--model_name_or_path=fpn"]) == PRESETS["own_masks"]
    (tmp_path / "recipe.yaml").write_text("seed: 1\n")
    assert choose_defaults(["--config", str(tmp_path / "recipe.yaml")]) == {}


def test_help_shows_the_defaults_of_the_command():
    for words, default in (
        (["--help"], "timm/tf_efficientnet_lite0.in1k"),
        (["--task", "image-segmentation", "--help-all"], "unet"),
        (["cnn_brain", "-h"], "cnn"),
    ):
        printed = " ".join(run_cli("train", *words).split())  # lines are as long as the terminal is wide
        assert f"(default: {default})" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("vit_brian", "Did you mean 'vit_brain'"),
        ("cnn_brain --dataset brain-tumour-mri", "Did you mean 'brain-tumor-mri'"),
        ("cnn_brain --external_dataset Brain_Phantom", "Did you mean 'brain-phantoms'"),
        ("cnn_brain --augmentation brian", "Did you mean 'brain'"),
        ("cnn_brain --data_dir /no/such/folder", "--data_dir /no/such/folder does not exist"),
        ("cnn_brain --splits=~/absent.csv", r"absent\.csv does not exist"),
        ("cnn_brain --seed -1", "--seed must be a number at least 0"),
        ("cnn_brain more", "Unknown argument 'more'"),
        ("absent.yaml", "absent.yaml does not exist"),
    ],
)
def test_mistakes_end_with_advice(words, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hf-medtl"])
    result = CliRunner().invoke(app, ["train", *words.split()])
    assert result.exit_code == 1
    assert re.search(message, f"{result.output}{result.exception}")


def test_help_and_mistakes_do_not_import_torch():
    code = """
import sys
from hf_medtl.cli import main
for words in ("--help", "train", "train vit_brain --help", "train vit_brain --optim x", "predict /no/model ."):
    sys.argv = ["hf-medtl", *words.split()]
    try:
        main()
    except SystemExit as stop:
        print(stop, file=sys.stderr)
print({"torch", "transformers", "numpy"} & {*sys.modules})
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert process.stdout.endswith("set()\n"), process.stderr
    assert "--optim must be" in process.stderr
    assert "/no/model" in process.stderr


def test_notebook_gives_no_arguments_and_errors_are_raised(notebook, calls):
    main({"dataset": "brain-phantoms", "model_name_or_path": "cnn", "use_cpu": True})
    assert calls[0].dataset == "brain-phantoms"
    with pytest.raises(MedtlError, match="Unknown key 'epochs'"):
        main({"epochs": 3})


def test_script_that_a_notebook_runs_keeps_its_arguments(notebook, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipes/vit_brain.py", "--seed", "1"])
    assert given_arguments() == ["--seed", "1"]


def test_messages_are_shown_once_in_a_notebook(notebook, capsys):
    show_messages()
    show_messages()
    logging.getLogger("hf_medtl.runs").info("Dry run: nothing was written.")
    assert capsys.readouterr().err == "Dry run: nothing was written.\n"
