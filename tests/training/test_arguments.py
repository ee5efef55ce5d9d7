"""Options inherited from TrainingArguments: each invalid one is one plain sentence."""

import inspect

import numpy as np
import pytest
from transformers.trainer_utils import IntervalStrategy

from hf_medtl import MedtlError, Recipe

BASE = ["--use_cpu", "true", "--dataset", "brain-phantoms"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--max_steps 0", "--max_steps must be at least 1"),
        ("--num_train_epochs 0", "--num_train_epochs must be a number above 0, but is 0.0"),
        ("--num_train_epochs nan", "--num_train_epochs must be a number above 0"),
        ("--per_device_train_batch_size 0", "--per_device_train_batch_size must be a number at least 1, but is 0"),
        ("--per_device_eval_batch_size -1", "--per_device_eval_batch_size must be a number at least 1"),
        ("--gradient_accumulation_steps 0", "--gradient_accumulation_steps must be a number at least 1"),
        ("--eval_accumulation_steps 0", "--eval_accumulation_steps must be"),
        ("--learning_rate -1", "--learning_rate must be a number at least 0"),
        ("--learning_rate inf", "--learning_rate must be a number at least 0"),
        ("--adam_beta2 1", "--adam_beta2 must be a number at least 0 and below 1"),
        ("--seed -1", "--seed must be a number at least 0 and below 4294967296, but is -1"),
        ("--split_seed -1", "--split_seed must be"),
        ("--folds -1", "--folds must be"),
        ("--logging_steps 0", "--logging_steps must be a number above 0"),
        ("--early_stopping_patience -1", "--early_stopping_patience must be"),
        ("--dataloader_num_workers -1", "--dataloader_num_workers must be"),
        ("--dataloader_persistent_workers true", "there are no workers. Add --dataloader_num_workers"),
        ("--batch_eval_metrics true", "all validation images at once. Remove the option"),
        ("--eval_do_concat_batches false", "all validation images at once. Remove the option"),
        ("--prediction_loss_only true", "validation would have no metrics"),
        ("--remove_unused_columns true", "it would remove the images"),
        ("--use_liger_kernel true", "for language models"),
        ("--eval_strategy steps --eval_steps 2", "--eval_strategy steps --save_strategy steps"),
        ("--eval_strategy no", "--load_best_model_at_end needs --eval_strategy"),
        ("--lr_scheduler_type foo", "'foo'"),
        ("--hub_strategy foo", "'foo'"),
        ('--accelerator_config {"foo":1}', "--accelerator_config is invalid: AcceleratorConfig.__init__() got an"),
        ("--ddp_backend nope", "--ddp_backend must be nccl, gloo"),
        ("--ddp_backend gloo", "--ddp_backend is invalid: "),
        ("--label_names a", "--label_names: the task knows"),
        ("--do_train false", "--do_train false has no effect: a run is trained"),
        ("--accelerator_config absent.json", "No such file or directory: 'absent.json'"),
        ("--torch_compile_backend foo", "--torch_compile_backend must be one of"),
        ("--fsdp full_shard", "there is one"),
        ("--mixed_precision fp16", "fp16 needs an accelerator"),
        ("--bf16 true --fp16 true", "fp16 needs an accelerator"),
    ],
)
def test_an_option_that_cannot_work_is_one_sentence(flags, message):
    with pytest.raises(MedtlError) as error:
        Recipe.from_cli({}, [*BASE, *flags.split()])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("warmup_ratio", 0.1, "Unknown option 'warmup_ratio'. Did you mean 'warmup_steps'"),
        ("save_strategy", "epochs", "--save_strategy must be .* but is 'epochs'. Did you mean 'epoch'"),
        ("train_sampling_strategy", "nope", "--train_sampling_strategy must be random, "),
        ("parallelism_config", object(), "--parallelism_config: parallelism within"),
        ("do_train", False, "--do_train false has no effect"),
    ],
)
def test_options_from_python_are_checked_as_those_of_the_command_line(option, value, message):
    with pytest.raises(MedtlError, match=message):
        Recipe(use_cpu=True, **{option: value})
    assert next(iter(inspect.signature(Recipe).parameters)) != "args"
    assert Recipe(use_cpu=True, save_strategy=IntervalStrategy.EPOCH).do_train is None


def test_a_number_given_as_text_is_an_error():
    with pytest.raises(MedtlError, match="--learning_rate must be a number at least 0, but is '1e-3'"):
        Recipe(use_cpu=True, learning_rate="1e-3")
    assert Recipe(use_cpu=True, learning_rate=np.float32(0.5), seed=np.int64(3)).seed == 3


def test_bf16_on_a_machine_without_accelerator_trains_on_the_cpu(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda *args: False)
    recipe = Recipe(mixed_precision="bf16")
    assert (recipe.bf16, recipe.use_cpu, recipe.device.type) == (True, True, "cpu")
    assert "use_cpu" not in recipe.to_yaml()


@pytest.mark.parametrize(
    ("machine", "warned"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_bf16_is_warned_of_where_the_cpu_has_no_instructions_for_it(machine, warned, monkeypatch, caplog):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: machine)
    Recipe(mixed_precision="bf16", use_cpu=True)
    assert ("no instructions for bfloat16" in caplog.text) is warned
    caplog.clear()
    Recipe(mixed_precision="no", use_cpu=True)
    assert not caplog.text


def test_enums_are_saved_as_text():
    recipe = Recipe.from_cli({}, [*BASE, "--debug", "underflow_overflow"])
    assert "debug: underflow_overflow" in recipe.to_yaml()


def test_home_is_expanded_in_every_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "more.yaml").write_text("data_dir: ~/data\nsplits: ~/splits.csv\n", encoding="utf-8")
    (tmp_path / "model").mkdir()
    flags = ["--config=~/more.yaml", "--output_dir=~/run", "--model_name_or_path=~/model"]
    recipe = Recipe.from_cli({}, [*BASE, *flags])
    paths = [recipe.data_dir, recipe.splits, recipe.output_dir, recipe.model_name_or_path]
    assert paths == [str(tmp_path / name) for name in ("data", "splits.csv", "run", "model")]
    assert "model_name_or_path: model\n" in recipe.to_yaml()
