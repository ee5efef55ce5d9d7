"""What may change when a run is resumed."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
from transformers import TrainingArguments

from hf_medtl import MedtlError, Recipe, run
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.runs.resuming import BATCH, FREE, RECORDED, check_changes, read_notes
from tests.support.commands import options


@pytest.fixture
def changes(tmp_path):
    """Return a function that resumes a run with other options and returns the notes."""

    def changes(before: dict, after: dict) -> list[str]:
        (tmp_path / "recipe.yaml").write_text(Recipe(use_cpu=True, **before).to_yaml(), encoding="utf-8")
        return check_changes(Recipe(use_cpu=True, **after), str(tmp_path / "checkpoint-24"))

    return changes


@pytest.mark.parametrize(
    "changed",
    [
        {"preprocessing": "clahe"},
        {"fit": "pad"},
        {"loss": "focal"},
        {"class_weights": "balanced"},
        {"label_smoothing_factor": 0.1},
        {"metric_for_best_model": "roc_auc"},
        {"augmentation": "brain"},
        {"mixup": 0.2},
        {"head_dropout": 0.5},
        {"learning_rate": 1e-3},  # the optimizer's state has the old one
        {"weight_decay": 0.5},
        {"optim": "sgd"},
        {"seed": 5},
        {"ema_decay": 0.9},
        {"strategy": "lora"},
        {"model_name_or_path": "other/model"},
        {"per_device_train_batch_size": 4},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_another_training_is_refused(changes, changed):
    with pytest.raises(MedtlError, match=rf"--{next(iter(changed))} was .* Training cannot go on from"):
        changes({}, changed)


def test_changes_from_the_checkpoint_on_are_recorded(changes):
    notes = changes({"num_train_epochs": 6}, {"num_train_epochs": 9, "warmup_steps": 5, "threshold": "0.3"})
    assert notes == [
        "# Resumed at step 24: --num_train_epochs was 6, then 9",
        "# Resumed at step 24: --warmup_steps was not given, then 5",
    ]
    batch = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    assert [note.split()[5] for note in changes({}, batch)] == [f"--{name}" for name in sorted(batch)]
    assert changes({"loss": "focal"}, {"loss": "focal", "logging_steps": 50, "report_to": "none"}) == []


def test_a_recipe_of_an_older_version_resumes(changes, tmp_path):
    (tmp_path / "recipe.yaml").write_text("dropped_option: 3\nlearning_rate: 2.0e-05\n", encoding="utf-8")
    assert check_changes(Recipe(use_cpu=True), str(tmp_path / "checkpoint-24")) == []
    (tmp_path / "recipe.yaml").unlink()
    assert check_changes(Recipe(use_cpu=True, loss="focal"), str(tmp_path / "checkpoint-24")) == []


def test_every_name_is_an_option():
    names = {f.name for f in dataclasses.fields(Recipe)}
    inherited = {f.name for f in dataclasses.fields(TrainingArguments)}
    assert {*FREE, *RECORDED, *BATCH} <= names | inherited
    assert not FREE & RECORDED


def test_a_resumed_run_names_its_changes(finished_run, phantoms, tiny_checkpoint, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    (folder / "results.json").unlink()
    (folder / "UNFINISHED").touch()
    card = str(Path(__file__).parents[2] / "model_cards" / "brain.md")
    values = options(phantoms, tiny_checkpoint("vit"), folder, model_card=card, resume_from_checkpoint="auto")
    with pytest.raises(MedtlError, match=r"--loss was not given in the run of .* and is focal now"):
        run(Recipe(**values, loss="focal"))
    run(Recipe(**values | {"num_train_epochs": 3}))
    note = "# Resumed at step 8: --num_train_epochs was 2, then 3"
    assert f"checkpoint-8. {note[2:]}" in capsys.readouterr().out
    assert read_notes(RunFolder(folder)) == [note]
    assert RunFolder(folder).recipe["num_train_epochs"] == 3
    assert re.search(r"- Resumed at step 8: --num_train_epochs was 2, then 3\.", (folder / "README.md").read_text())
