"""Recipe: precedence of dict, YAML and flags, unknown keys, and round trips."""

import os

import pytest
import yaml

from hf_medtl import MedtlError, Recipe

DEFAULTS = {"dataset": "brain-phantoms", "output_dir": "runs/x", "learning_rate": 1e-4, "num_train_epochs": 3}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tweak.yaml"
    path.write_text("learning_rate: 2e-5\nlogging_steps: 7\n")  # YAML 1.1 reads 2e-5 as text
    return path


def test_flags_override_yaml_and_yaml_overrides_the_recipe(config):
    recipe = Recipe.from_cli(DEFAULTS, [])
    assert (recipe.learning_rate, recipe.num_train_epochs) == (1e-4, 3)
    recipe = Recipe.from_cli(DEFAULTS, ["--config", str(config)])
    assert (recipe.learning_rate, recipe.logging_steps, recipe.num_train_epochs) == (2e-5, 7, 3)
    recipe = Recipe.from_cli(DEFAULTS, ["--config", str(config), "--learning_rate", "0.5"])
    assert (recipe.learning_rate, recipe.logging_steps) == (0.5, 7)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--learnig_rate", "1"], "Did you mean 'learning_rate'"),
        (["--learning_rat", "1"], "Did you mean 'learning_rate'"),  # no abbreviations
        (["--num_train_epochs", "many"], "--num_train_epochs must be a number, but is 'many'"),
        (["--augmentation", "mirror"], "none, light, chest, brain or randaugment"),
        (["--mixed_precision", "fp8"], "auto, no, bf16 or fp16"),
        (["--load_best_model_at_end", "false"], "--early_stopping_patience 0"),
        (["--columns", "patients=PatientID"], "Did you mean 'patient'"),
        (["--config", "/absent.yaml"], "--config .*absent.yaml does not exist"),
    ],
)
def test_invalid_flags_raise_with_advice(argv, message):
    with pytest.raises(MedtlError, match=message):
        Recipe.from_cli(DEFAULTS, argv)


def test_rejects_unknown_keys_in_recipe_and_yaml(tmp_path):
    with pytest.raises(MedtlError, match="Did you mean 'augmentation'"):
        Recipe.from_cli(DEFAULTS | {"augmentations": "light"}, [])
    (tmp_path / "c.yaml").write_text("epochs: 3\n")
    with pytest.raises(MedtlError, match="Unknown key 'epochs'"):
        Recipe.from_cli(DEFAULTS, ["--config", str(tmp_path / "c.yaml")])
    (tmp_path / "c.yaml").write_text("- a\n")
    with pytest.raises(MedtlError, match="contains a list"):
        Recipe.from_cli(DEFAULTS, ["--config", str(tmp_path / "c.yaml")])


def test_card_and_augmentation_of_a_recipe_are_for_its_own_data_set(tmp_path):
    card, other = tmp_path / "brain.md", tmp_path / "kidneys.md"
    card.touch()
    other.touch()
    brain = {"model_card": str(card), "augmentation": "brain", "preprocessing": "brain_crop"}
    defaults = {"dataset": "brain-phantoms", "learning_rate": 1e-4, **brain}
    own = Recipe.from_cli(defaults, ["--data_dir", "elsewhere", "--dataset", "brain-phantoms"])
    assert (own.model_card, own.augmentation, own.left_out) == (str(card), "brain", {})

    recipe = Recipe.from_cli(defaults, ["--dataset", "imagefolder"])
    assert (recipe.model_card, recipe.augmentation, recipe.preprocessing) == (None, "light", "")
    assert recipe.learning_rate == 1e-4
    assert recipe.left_out == recipe.variant(seed=3).left_out == brain
    saved = yaml.safe_load(recipe.to_yaml())
    assert (saved["augmentation"], saved["preprocessing"]) == ("light", "")

    flags = ["--dataset=imagefolder", "--model_card", str(other), "--augmentation=brain"]
    chosen = Recipe.from_cli(defaults, flags)
    assert (chosen.model_card, chosen.augmentation) == (str(other), "brain")
    assert chosen.left_out == {"preprocessing": "brain_crop"}
    (tmp_path / "mine.yaml").write_text(f"dataset: imagefolder\nmodel_card: {other.as_posix()}\naugmentation: chest\n")
    mine = Recipe.from_cli(defaults, ["--config", str(tmp_path / "mine.yaml")])
    assert (mine.model_card, mine.augmentation) == (other.as_posix(), "chest")


def test_data_dir_alone_is_the_users_own_data(tmp_path):
    (tmp_path / "t.csv").touch()
    own = Recipe(data_dir=str(tmp_path))
    assert own.dataset == own.variant(seed=3).dataset == yaml.safe_load(own.to_yaml())["dataset"] == "imagefolder"
    assert Recipe(data_dir=str(tmp_path / "t.csv")).dataset == "table"
    assert Recipe(task="image-segmentation", model_name_or_path="unet", data_dir=str(tmp_path)).dataset == "imagefolder"
    named = Recipe(dataset="brain-tumor-mri", data_dir=str(tmp_path))
    assert named.dataset == named.variant(seed=3).dataset == yaml.safe_load(named.to_yaml())["dataset"]
    assert named.dataset == Recipe().dataset == "brain-tumor-mri"
    (tmp_path / "recipe.yaml").write_text("seed: 1\n")  # of an older run, without the default
    old = Recipe.from_cli({}, ["--config", str(tmp_path / "recipe.yaml"), "--data_dir", str(tmp_path)])
    assert old.dataset == "brain-tumor-mri"


def test_recipe_yaml_round_trip(tmp_path):
    recipe = Recipe.from_cli(DEFAULTS, ["--seed", "7", "--weight_decay", "0.3", "--data_dir", "/home/someone/data"])
    text = recipe.to_yaml()
    assert yaml.safe_load(text) == {
        "dataset": "brain-phantoms", "learning_rate": 1e-4, "num_train_epochs": 3.0, "seed": 7, "weight_decay": 0.3
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(text)
    again = Recipe.from_cli({"output_dir": "runs/x"}, ["--config", str(tmp_path / "recipe.yaml")])
    assert again.to_dict() | {"data_dir": None, "config": None} == recipe.to_dict() | {"data_dir": None, "config": None}


def test_hub_token_is_never_saved(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "before")
    recipe = Recipe.from_cli(DEFAULTS, ["--hub_token", "hf_secret"])
    assert os.environ["HF_TOKEN"] == "hf_secret"
    for text in (recipe.to_yaml(), recipe.to_json_string(), str(recipe), str(vars(recipe))):
        assert "hf_secret" not in text


def test_help_shows_the_defaults_of_the_recipe(capsys):
    with pytest.raises(SystemExit):
        Recipe.from_cli(DEFAULTS, ["--help"])
    text = capsys.readouterr().out
    for name in ("--head_learning_rate", "--dry_run", "--gradient_accumulation_steps", "0.0001"):
        assert name in text
