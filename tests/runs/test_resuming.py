"""What may change when a run is resumed."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
from transformers import TrainingArguments

from hf_medtl import MedtlError, Recipe, run
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.runs.resuming import BATCH, FREE, MEANING, RECORDED, check_changes, last_change, read_notes
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
    newer = {"activation_checkpointing", "activation_checkpointing_kwargs"}  # than the lowest version of transformers
    assert {*FREE, *RECORDED, *MEANING, *BATCH} - newer <= names | inherited
    assert len({*FREE, *RECORDED, *MEANING}) == len(FREE) + len(RECORDED) + len(MEANING)


@pytest.mark.parametrize("option", sorted(MEANING - {"greater_is_better"}))
def test_another_meaning_is_allowed_if_asked_for_and_then_recorded(changes, option):
    values = {"focal_gamma": 3.0, "effective_beta": 0.9, "label_smoothing_factor": 0.1, "mixup": 0.2, "cutmix": 0.2}
    values |= {"loss": "focal", "class_weights": "balanced", "augmentation": "brain", "preprocessing": "clahe"}
    values |= {"fit": "pad", "metric_for_best_model": "roc_auc", "neftune_noise_alpha": 0.1}
    values |= {"load_best_model_at_end": False, "lung_model": "someone/lungs"}
    more = {"preprocessing": "lung_crop", "lung_model": "someone/others"} if option == "lung_model" else {}
    more |= {"early_stopping_patience": 0} if option == "load_best_model_at_end" else {}
    more |= {"loss": "focal"} if option == "focal_gamma" else {}
    more |= {"class_weights": "effective"} if option == "effective_beta" else {}
    value = values[option]
    with pytest.raises(MedtlError, match=rf"--{option} was .* and is {value} now.*allow it \(--allow_changes\)"):
        changes(more, more | {option: value})
    (note,) = changes(more, more | {option: value, "allow_changes": True})
    assert note.startswith(f"# Resumed at step 24: --{option} was ")
    assert note.endswith(f", then {value} (--allow_changes)")


def test_what_would_have_no_effect_is_refused_even_then(changes):
    with pytest.raises(MedtlError, match="--learning_rate was not given") as error:
        changes({}, {"learning_rate": 1e-3, "loss": "focal", "allow_changes": True})
    assert "--loss" not in str(error.value)
    assert "allow it" not in str(error.value)


def test_another_positive_label_is_recorded(changes, tmp_path):
    (tmp_path / "checkpoint-24").mkdir()
    (tmp_path / "checkpoint-24" / "config.json").write_text('{"positive_label": "a"}', encoding="utf-8")
    (note,) = changes({}, {"positive_label": "b", "allow_changes": True})
    assert note == "# Resumed at step 24: --positive_label was a, then b (--allow_changes)"
    assert changes({}, {"positive_label": "a", "allow_changes": True}) == []


def test_weights_of_before_a_change_are_not_chosen_later():
    notes = [f"# Resumed at step {step}: --x was 1, then 2{end}" for step, end in ((8, ""), (4, " (--allow_changes)"))]
    assert last_change(notes) == 4
    assert last_change([]) == 0


def test_a_checkpoint_without_recipe_is_not_silently_compared(tmp_path, caplog):
    assert check_changes(Recipe(use_cpu=True, loss="focal"), str(tmp_path / "checkpoint-24")) == []
    assert "has no recipe.yaml" in caplog.text


def test_a_resumed_run_names_its_changes(finished_run, phantoms, tiny_checkpoint, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    (folder / "results.json").unlink()
    (folder / "UNFINISHED").touch()
    card = str(Path(__file__).parents[2] / "model_cards" / "brain.md")
    values = options(phantoms, tiny_checkpoint("vit"), folder, model_card=card, resume_from_checkpoint="auto")
    with pytest.raises(MedtlError, match=r"--loss was not given in the run of .* and is focal now"):
        run(Recipe(**values, loss="focal"))
    run(Recipe(**values | {"num_train_epochs": 3}, loss="focal", allow_changes=True))
    notes = [
        "# Resumed at step 8: --loss was not given, then focal (--allow_changes)",
        "# Resumed at step 8: --num_train_epochs was 2, then 3",
    ]
    output = capsys.readouterr().out
    assert all(note[2:] in output for note in notes)
    assert read_notes(RunFolder(folder)) == notes
    assert RunFolder(folder).recipe["num_train_epochs"] == 3
    assert "allow_changes" not in RunFolder(folder).recipe
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "- Resumed at step 8: --loss was not given, then focal (--allow_changes).\n" in card
    assert re.search(r"- Resumed at step 8: --num_train_epochs was 2, then 3\.", card)
    assert "The weights are those of step 12," in card  # whatever those of before, by the other loss, were
