"""Options of a run: flags read without transformers, conversions, YAML, help, and names that other modules own."""

import dataclasses
import re

import pytest
from transformers import TrainingArguments

from hf_medtl import MedtlError
from hf_medtl.common.yaml_files import read_yaml
from hf_medtl.data.augmentation import AUGMENTATIONS
from hf_medtl.evaluation import decisions
from hf_medtl.models import build
from hf_medtl.models.processor import FITS, STEPS
from hf_medtl.models.smp import ARCHITECTURES
from hf_medtl.models.strategies import FITTED, STRATEGIES
from hf_medtl.training import losses, mask_losses
from hf_medtl.training.command_line import format_help, read_options
from hf_medtl.training.flags import all_flags, groups
from hf_medtl.training.options import CHOICES, FITTED_STRATEGIES, LISTS, OWN_NETWORKS, THRESHOLD_RULES, Options
from tests.support.commands import ROOT


def test_names_are_those_of_the_modules_that_implement_them():
    """training/options.py repeats them, so that --help needs no heavy module: add a new name there, too."""
    assert CHOICES["augmentation"] == AUGMENTATIONS, "CHOICES in training/options.py and AUGMENTATIONS differ"
    assert CHOICES["strategy"] == STRATEGIES, "CHOICES in training/options.py and STRATEGIES differ"
    assert FITTED_STRATEGIES == FITTED, (
        "FITTED_STRATEGIES in training/options.py and FITTED in models/strategies.py differ"
    )
    named = {*losses.LOSSES, *mask_losses.LOSSES}
    assert {*CHOICES["loss"]} == named, "CHOICES in training/options.py and LOSSES (losses.py, mask_losses.py) differ"
    assert CHOICES["class_weights"] == losses.CLASS_WEIGHTS, "CHOICES in training/options.py and CLASS_WEIGHTS differ"
    assert CHOICES["fit"] == FITS, "CHOICES in training/options.py and FITS differ"
    assert LISTS["preprocessing"] == STEPS, "LISTS in training/options.py and STEPS differ"
    assert (*build.OWN_NETWORKS, *ARCHITECTURES) == OWN_NETWORKS, "OWN_NETWORKS in training/options.py lacks one"
    assert THRESHOLD_RULES == decisions.THRESHOLD_RULES, "THRESHOLD_RULES in training/options.py differs"


def test_every_option_is_read_somewhere():
    own = {field.name for field in dataclasses.fields(Options)} - {
        f.name for f in dataclasses.fields(TrainingArguments)
    }
    package = ROOT / "hf_medtl"
    lists = {package / "training" / name for name in ("options.py", "flags.py", "presets.py")}
    code = "\n".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py") if path not in lists)
    unread = {name for name in own if not re.search(rf"[.\"']{name}\b", code)}
    assert not unread, f"options in training/options.py that nothing reads: {unread}"


def test_flags_are_the_fields_of_the_recipe_with_their_defaults():
    flags = all_flags()
    own = {f.name for f in dataclasses.fields(Options)}
    fields = {f.name: f for f in dataclasses.fields(TrainingArguments) if f.init}
    assert {*flags} == own | {*fields}
    for name in {*fields} - own:
        default = fields[name].default if fields[name].default is not dataclasses.MISSING else []
        assert flags[name].default == default, name
        assert flags[name].help == str(fields[name].metadata["help"]).replace("%%", "%")
    assert {"linear", "cosine", "warmup_stable_decay"} <= {*flags["lr_scheduler_type"].choices}
    assert "adam" in flags["optim"].choices


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--num-train-epochs 3", {"num_train_epochs": 3.0}),
        ("--seed=7 --dry_run", {"seed": 7, "dry_run": True}),
        ("--no_load_best_model_at_end --use-cpu yes", {"load_best_model_at_end": False, "use_cpu": True}),
        ("--fold 0 --optim adam --bf16", {"fold": 0, "optim": "adam", "bf16": True}),
        ("--dataloader_num_workers 2 --include_for_metrics a b", {"include_for_metrics": ["a", "b"]}),
        ("--fsdp --positive_label -x", None),
    ],
)
def test_flags_have_the_types_of_their_options(flags, expected):
    if expected is None:
        with pytest.raises(MedtlError, match="expected one argument"):
            read_options({}, flags.split())
    else:
        values, named, left_out = read_options({}, flags.split())
        assert {name: values[name] for name in expected} == expected
        assert (named, left_out) == (set(), {})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": "fast"}, "--learning_rate must be a number, but is 'fast'"),
        ({"learning_rate": True}, "--learning_rate must be a number, but is True"),
        ({"num_train_epochs": None}, "--num_train_epochs must be a number, but is None"),
        ({"seed": 1.5}, "--seed must be a whole number, but is 1.5"),
        ({"dry_run": "perhaps"}, "--dry_run must be true or false"),
        ({"augmentation": "brian"}, "Did you mean 'brain'"),
        ({"preprocessing": "brain_cropp,clahe"}, "Did you mean 'brain_crop'"),
        ({"eval_strategy": "epochs"}, "must be no, steps or epoch, but is 'epochs'. Did you mean 'epoch'"),
        ({"lr_scheduler_type": "cosin"}, "Did you mean 'cosine'"),
        ({"optim": "adamw_torhc"}, "Did you mean 'adamw_torch'"),
        ({"external_labels": {"a": "b"}}, "--external_labels must be text"),
        ({"agumentation": "light"}, "Unknown key 'agumentation' in the recipe. Did you mean 'augmentation'"),
    ],
)
def test_values_of_the_wrong_type_are_refused(values, message):
    with pytest.raises(MedtlError, match=message):
        read_options(values, [])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_yaml_keeps_words_and_reads_any_unicode_encoding(tmp_path, encoding):
    path = tmp_path / "recipe.yaml"
    text = "positive_label: yes\nmixed_precision: no\nlearning_rate: 2e-5\npreprocessing: [brain_crop, clahe]\n"
    path.write_text(f"{text}external_labels: Ödem=edema\nuse_cpu: on\n", encoding=encoding)
    values, named, _ = read_options({"learning_rate": 1.0}, ["--config", str(path)])
    assert (values["positive_label"], values["mixed_precision"]) == ("yes", "no")
    assert (values["learning_rate"], values["preprocessing"]) == (2e-5, "brain_crop,clahe")
    assert (values["external_labels"], values["use_cpu"]) == ("Ödem=edema", True)
    assert "positive_label" in named


def test_yaml_in_another_encoding_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes("positive_label: Ödem\n".encode("cp1252"))
    with pytest.raises(MedtlError, match=r"--config .*recipe.yaml cannot be read as YAML"):
        read_yaml(path, "--config")


def test_help_has_own_options_in_groups_and_help_all_the_others():
    shown = format_help({"learning_rate": 1e-4}, program="hf-medtl train vit_brain")
    assert all(
        f"\n{heading}:\n" in shown for heading in ("Data", "Split", "Model", "Training", "Decisions", "Publishing")
    )
    assert shown.count("\n  hf-medtl train vit_brain ") == 3
    assert "(default: 0.0001)" in shown
    assert "--head_learning_rate" in shown
    assert "--adam_beta1" not in shown
    everything = format_help(everything=True)
    for f in dataclasses.fields(Options):
        assert f"--{f.name} " in everything
    assert "--adam_beta1" in everything
    assert not [heading for heading, flags in groups().items() if not (heading and flags)]
