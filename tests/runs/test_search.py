"""Hyperparameter search: resumable and reproducible trials, never scored on the test split."""

import errno
import gc
import importlib
import importlib.util
import json
import signal
import sqlite3
import time
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
import yaml
from filelock import FileLock
from sqlalchemy import event
from sqlalchemy.engine import Engine

from hf_medtl import MedtlError, Recipe, read_image, run
from hf_medtl.data import cache
from hf_medtl.data.prepared import PreparedImages
from hf_medtl.errors import Unavailable
from hf_medtl.runs import search, search_space
from hf_medtl.runs.preflight import build
from hf_medtl.runs.search_space import check_search, read_space, sample
from hf_medtl.runs.train import make_trainer
from hf_medtl.tasks.classification import Classification
from tests.support.commands import ROOT, flags, options
from tests.support.image_files import write_noise_image

SPACE = {"learning_rate": ["1e-4", 1e-2, "log"], "mixup": [0, 0.4], "augmentation": ["light", "brain"]}
COMPARED_COLUMNS = ["value", "learning_rate", "mixup", "augmentation", "state", "evaluations"]  # not the seconds


@pytest.fixture(autouse=True, scope="module")
def fast_sqlite():
    """Turn off SQLite's synchronous writes: these files need not survive a power cut."""

    def set_pragma(connection, record) -> None:
        connection.execute("pragma synchronous = off")

    event.listen(Engine, "connect", set_pragma)
    yield
    event.remove(Engine, "connect", set_pragma)


def search_options(phantoms: Path, backbone: Path, output: Path, **overrides: object) -> dict[str, object]:
    return options(phantoms, backbone, output, learning_rate=1e-3, search=4, search_space=SPACE) | overrides


def finished_trials(folder: Path) -> int:
    if not (folder / "search.db").exists():
        return 0
    with sqlite3.connect(folder / "search.db") as base:
        try:
            return base.execute("select count(*) from trials where state in ('COMPLETE', 'PRUNED')").fetchone()[0]
        except sqlite3.OperationalError:  # the tables do not exist yet
            return 0


@pytest.fixture(scope="module")
def recorded(phantoms, tiny_checkpoint, tmp_path_factory) -> tuple[Path, set[int]]:
    """Return the folder of a search, and the rows of all images that it read."""
    read_rows: set[int] = set()
    original = PreparedImages.__getitem__

    def record(self, index):
        read_rows.add(self.indices[index])
        return original(self, index)

    def predict(*args: object) -> None:
        raise AssertionError("a search asks no pipeline")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreparedImages, "__getitem__", record)
        patch.setattr(Classification, "predict", predict)
        folder = run(
            Recipe(**search_options(phantoms, tiny_checkpoint("vit"), tmp_path_factory.mktemp("search") / "run"))
        )
    return folder, read_rows


@pytest.mark.slow
def test_search_writes_its_files_and_starts_with_the_recipe(recorded):
    folder, _ = recorded
    assert {path.name for path in folder.iterdir() if path.name[0] != "."} == {
        "best.yaml", "checksums.json", "figures", "recipe.yaml", "search.db", "splits.csv", "trials.csv"
    }  # fmt: skip
    assert (folder / "figures" / "search.png").stat().st_size > 1000
    trials = pd.read_csv(folder / "trials.csv")
    assert trials["trial"].tolist() == [1, 2, 3, 4]
    assert trials.loc[0, ["learning_rate", "mixup", "augmentation"]].tolist() == [1e-3, 0, "light"]  # the recipe
    assert trials["learning_rate"].between(1e-4, 1e-2).all()
    assert trials["learning_rate"].nunique() == 4


def test_search_does_not_read_the_test_split(recorded):
    folder, read_rows = recorded
    splits = pd.read_csv(folder / "splits.csv")["split"]
    assert {splits[row] for row in read_rows} == {"train", "validation"}
    assert "test" in set(splits)


@pytest.mark.slow
def test_run_of_best_yaml_reproduces_the_best_value(recorded, phantoms, tiny_checkpoint, tmp_path):
    folder, _ = recorded
    best = yaml.safe_load((folder / "best.yaml").read_text())
    trials = pd.read_csv(folder / "trials.csv").sort_values("value")
    assert best["learning_rate"] == trials["learning_rate"].iloc[0]
    paths = {"data_dir": phantoms, "model_name_or_path": tiny_checkpoint("vit"), "output_dir": tmp_path / "run"}
    argv = ["--config", str(folder / "best.yaml"), *flags(**paths)]
    output = run(Recipe.from_cli({"learning_rate": 7.0, "augmentation": "chest", "mixup": 0.3}, argv))
    states = [json.loads(path.read_text()) for path in output.glob("checkpoint-*/trainer_state.json")]
    assert min(state["best_metric"] for state in states) == pytest.approx(trials["value"].iloc[0], abs=1e-6)


def test_yaml_has_values_set_back_to_their_defaults(tmp_path):
    """Otherwise the recipe file would override them."""
    recipe = Recipe.from_cli({"augmentation": "brain", "output_dir": str(tmp_path)}, ["--augmentation", "light"])
    assert yaml.safe_load(recipe.to_yaml())["augmentation"] == "light"
    assert yaml.safe_load(recipe.variant(mixup=0.0).to_yaml())["mixup"] == 0


@pytest.mark.slow
def test_finished_search_can_be_repeated_and_extended(recorded, phantoms, tiny_checkpoint, capsys):
    folder, _ = recorded
    before = (folder / "trials.csv").read_text()
    run(Recipe(**search_options(phantoms, tiny_checkpoint("vit"), folder)))
    assert (folder / "trials.csv").read_text() == before
    output = capsys.readouterr().out
    assert f"--config {folder / 'best.yaml'} --output_dir {folder}-best" in " ".join(output.split())
    run(Recipe(**search_options(phantoms, tiny_checkpoint("vit"), folder, search=5)))
    assert len(pd.read_csv(folder / "trials.csv")) == 5


def test_rejects_another_recipe_or_space_in_the_folder_of_a_search(recorded, phantoms, tiny_checkpoint):
    folder, _ = recorded
    with pytest.raises(MedtlError, match="--weight_decay was not given in the search"):
        run(Recipe(**search_options(phantoms, tiny_checkpoint("vit"), folder, weight_decay=0.3)))
    with pytest.raises(MedtlError, match="--search_space was"):
        run(Recipe(**search_options(phantoms, tiny_checkpoint("vit"), folder, search_space={"mixup": [0, 0.2]})))
    with pytest.raises(MedtlError, match="holds a search"):
        run(Recipe(**options(phantoms, tiny_checkpoint("vit"), folder)))


@pytest.mark.parametrize(
    ("number", "killed_in"), [pytest.param(4, 2, id="4"), pytest.param(14, 12, id="14", marks=pytest.mark.slow)]
)
def test_killed_search_resumes_and_equals_an_uninterrupted_one(
    number, killed_in, process_pool, phantoms, tiny_checkpoint, tmp_path
):
    """With 14 trials the sampler is past its random first trials, and trials are pruned."""
    # The recipe file sets these.
    overrides = {"search": number, "head_learning_rate": 1e-3, "num_train_epochs": 3}
    output = tmp_path / "killed"
    values = search_options(phantoms, tiny_checkpoint("vit"), output, augmentation="light", **overrides)
    process = process_pool.start_script("recipes/vit_brain.py", *flags(**values | {"search_space": json.dumps(SPACE)}))
    for _ in range(24000):
        if finished_trials(output) >= killed_in - 1:
            break
        assert process.poll() is None, "the search ended before it could be killed"
        time.sleep(0.01)
    time.sleep(0.2)  # until the next trial has started
    process.kill()
    process.wait()
    finished = finished_trials(output)
    assert killed_in - 1 <= finished < number
    assert (output / "UNFINISHED").exists()
    run(Recipe(**search_options(phantoms, tiny_checkpoint("vit"), output, **overrides)))
    killed = pd.read_csv(output / "trials.csv")
    assert killed["trial"].tolist() == list(range(1, number + 1))
    assert not (output / "UNFINISHED").exists()
    run(Recipe(**search_options(phantoms, tiny_checkpoint("vit"), tmp_path / "through", **overrides)))
    through = pd.read_csv(tmp_path / "through" / "trials.csv")
    pd.testing.assert_frame_equal(killed[COMPARED_COLUMNS], through[COMPARED_COLUMNS])


@pytest.fixture
def quick(phantoms, tiny_checkpoint, tmp_path, monkeypatch):
    """Return a search with instant trials, whose value is a formula; interrupted in trial `stop`."""

    def fake_training(stop: int | None):
        def train(make, callback):
            if len(search.ended_trials(callback.trial.study)) + 1 == stop:
                raise KeyboardInterrupt
            for callback.evaluations in (1, 2, 3):
                callback.trial.report(callback.trial.params["mixup"] / callback.evaluations, callback.evaluations)
                if callback.trial.should_prune():
                    return "worse"
            return callback.trial.params["mixup"]

        return train

    # Garbage is collected after each trial, which takes longer than these trials.
    monkeypatch.setattr(gc, "collect", lambda *args: 0)

    def run_search(name: str, stop: int | None = None, **overrides: object) -> pd.DataFrame:
        monkeypatch.setattr(search, "_train", fake_training(stop))
        values = search_options(phantoms, tiny_checkpoint("vit"), tmp_path / name, search=20) | overrides
        run(Recipe(**values))
        return pd.read_csv(tmp_path / name / "trials.csv")

    return run_search


@pytest.mark.slow
def test_trials_depend_only_on_seed_and_ended_trials(quick, tmp_path):
    first = quick("first")
    assert len(first) == 20
    assert set(first["state"]) == {"complete", "pruned"}
    for stop in (1, 13):
        with pytest.raises(KeyboardInterrupt, match=f"{stop - 1} of 20 trials are finished. Go on: the same command"):
            quick("stopped", stop)
    pd.testing.assert_frame_equal(first[COMPARED_COLUMNS], quick("stopped")[COMPARED_COLUMNS])
    assert quick("other", seed=2, search=2)["mixup"][1] != first["mixup"][1]


def test_rejects_simultaneous_searches_in_one_folder(quick, phantoms, tiny_checkpoint, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "UNFINISHED").touch()
    with FileLock(tmp_path / "run" / ".search.lock"), pytest.raises(MedtlError, match="Another process"):
        quick("run")


@pytest.mark.slow
def test_failed_trials_do_not_end_the_search(phantoms, tiny_checkpoint, tmp_path, monkeypatch):
    forced_values = [{"learning_rate": 1e-3}, {"learning_rate": 1e30}, {"strategy": "lp_ft", "probe_epochs": 9}]

    def forced(trial, space, strategy):
        sample(trial, space, strategy)
        return forced_values.pop(0)

    monkeypatch.setattr(search, "sample", forced)
    before = signal.getsignal(signal.SIGINT)
    folder = run(Recipe(**search_options(phantoms, tiny_checkpoint("vit"), tmp_path / "run", search=3)))
    trials = pd.read_csv(folder / "trials.csv")
    assert trials["state"].tolist() == ["complete", "pruned", "pruned"]
    assert trials["why"][1].startswith(
        "The training loss is nan at step 3 (epoch 0.50) with learning rate 9.50484e+29."
    )
    assert "--probe_epochs must be 1 or more" in trials["why"][2]
    assert signal.getsignal(signal.SIGINT) is before

    monkeypatch.setattr(search, "sample", lambda *args: sample(*args) | {"learning_rate": 1e30})
    with pytest.raises(MedtlError, match=r"None of 2 trials gave a value.*training loss is nan"):
        run(Recipe(**search_options(phantoms, tiny_checkpoint("vit"), tmp_path / "none", search=2)))


def errors_from_outside(folder: Path) -> list[Exception]:
    """What a trial meets when files, the disk or memory are missing, whatever its values are."""
    image = write_noise_image(folder / "image.png", 1)
    row = {"pixels": np.zeros((9, 9, 3), np.uint8)}
    made: list[Exception] = [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory."),
    ]
    for call in (
        lambda: cache._read_verified(folder / "removed.png", ""),
        lambda: cache._read_verified(image, "of another content"),
        lambda: cache._check_disk_space(folder, 10**15, row),
        lambda: read_image(image.read_bytes()[:99], name="cut.png"),
    ):
        with pytest.raises(MedtlError) as caught:
            call()
        made.append(caught.value)
    return made


def test_missing_files_disk_and_memory_are_not_the_fault_of_values(tmp_path):
    study, batches = optuna.create_study(), {"per_device_train_batch_size": [8, 512]}
    outside = errors_from_outside(tmp_path)
    for error in (*outside, ValueError("no model")):
        error.__cause__ = error.__cause__ or (FileNotFoundError("weights") if type(error) is ValueError else None)
        assert not search._is_own(error, study, SPACE | batches)
    for error in (MedtlError("--probe_epochs must be 1 or more."), ValueError("Input contains NaN")):
        assert search._is_own(error, study, SPACE)
    # Where another trial fitted, values that need more memory may be the reason themselves.
    study.add_trial(optuna.create_trial(value=1.0))
    assert [search._is_own(error, study, SPACE | batches) for error in outside] == [False, True, True, *[False] * 4]
    assert not any(search._is_own(error, study, SPACE) for error in outside)


def test_a_trial_that_failed_for_a_reason_outside_is_made_again(phantoms, tiny_checkpoint, tmp_path, monkeypatch):
    raised = []
    monkeypatch.setattr(gc, "collect", lambda *args: 0)
    monkeypatch.setattr(search.plots, "search_trials", lambda *args: None)

    def train(make, callback):
        number = len(search.ended_trials(callback.trial.study)) + 1
        if number == 2:
            raise MedtlError("--probe_epochs must be 1 or more.")
        if number == 3 and raised:
            raise raised.pop()
        return callback.trial.params["mixup"]

    monkeypatch.setattr(search, "_train", train)

    def run_search(name: str) -> pd.DataFrame:
        recipe = Recipe(**search_options(phantoms, tiny_checkpoint("vit"), tmp_path / name))
        search.search(recipe, read_space(SPACE), None)
        return pd.read_csv(tmp_path / name / "trials.csv")

    through = run_search("through")
    assert through["state"].tolist() == ["complete", "pruned", "complete", "complete"]
    raised.append(Unavailable("a.png can no longer be read."))
    with pytest.raises(
        MedtlError, match=r"Trial 3 of 4 failed, not for its values: a\.png .* The same command tries it"
    ):
        run_search("disturbed")
    assert finished_trials(tmp_path / "disturbed") == 2
    with sqlite3.connect(tmp_path / "disturbed" / "search.db") as base:
        reasons = base.execute("select value_json from trial_user_attributes where key = 'why'").fetchall()
    assert ('"a.png can no longer be read."',) in reasons
    pd.testing.assert_frame_equal(run_search("disturbed")[COMPARED_COLUMNS], through[COMPARED_COLUMNS])


def test_pruned_trial_stops_early_and_saves_nothing(phantoms, tiny_checkpoint, tmp_path):
    from hf_medtl import load

    class Trial:
        values: dict[int, float] = {}  # noqa: RUF012

        def report(self, value, step):
            self.values[step] = value

        def should_prune(self):
            return len(self.values) == 2

    recipe = Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "run", num_train_epochs=5))
    loaded = load("brain-phantoms", phantoms)
    callback = search.TrialCallback(Trial(), "eval_loss")
    trainer = make_trainer(recipe, loaded, *build(recipe, loaded), search.TrialTrainer)
    assert search._train(lambda: trainer, callback) == "worse than the median of the others after 2 evaluations"
    logged = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert logged == list(Trial.values.values())
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"search_space": {"learning_rat": [1, 2]}}, "Did you mean 'learning_rate'"),
        ({"search_space": {"seed": [1, 2, 3]}}, "can't change 'seed'"),
        ({"search_space": {"validation_fraction": [0.1, 0.2]}}, "can't change 'validation_fraction'"),
        ({"search_space": "{learning_rate: ["}, "can't be read as YAML"),
        ({"search_space": "5"}, "is a dict such as"),
        ({"search_space": {"mixup": 0.3}}, "expected a list"),
        ({"search_space": {"mixup": [0.4, 0.0]}}, "below the second"),
        ({"search_space": {"learning_rate": [0, 1, "log"]}}, "two numbers above 0"),
        ({"search_space": {"learning_rate": ["slow", "fast"]}}, "of type float"),
        ({"search_space": {"unfreeze_blocks": [1, 1.5]}, "strategy": "last_n"}, "of type int"),
        ({"search_space": {"augmentation": ["light", "strong"]}}, "must be none, light"),
        ({"search_space": {"augmentation": [False]}}, "of type str"),
        ({"search_space": {"lr_scheduler_type": ["cosine", "wavy"]}}, "lr_scheduler_type wavy"),
        ({"search_space": {"lora_rank": [4, 8]}}, "--lora_rank is for --strategy lora"),
        ({"search_space": {"focal_gamma": [1, 3]}, "loss": "focal"}, "losses can't be compared.*roc_auc"),
        ({"search": -1}, "number of trials"),
        (
            {"push_to_hub": True, "model_card": str(ROOT / "model_cards" / "brain.md")},
            "--push_to_hub: not with --search",
        ),
        ({"report_to": "tensorboard"}, "--report_to: not with --search"),
        (
            {"eval_strategy": "no", "load_best_model_at_end": False, "early_stopping_patience": 0},
            "--eval_strategy epoch",
        ),
        ({"resume_from_checkpoint": "/"}, "goes on from search.db"),
    ],
)
def test_rejects_invalid_searches(overrides, message, tmp_path):
    values = {"output_dir": str(tmp_path / "run"), "search": 4, "use_cpu": True}
    with pytest.raises(MedtlError, match=message):
        run(Recipe(**values | overrides))
    assert not (tmp_path / "run").exists()


def test_missing_optuna_error_names_the_extra(tmp_path, monkeypatch):
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optuna" else original(name))
    with pytest.raises(MedtlError, match=r'pip install "hf_medtl\[search\]"'):
        check_search(Recipe(output_dir=str(tmp_path), search=4))


def test_rejects_multiple_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(Recipe, "world_size", 2)
    with pytest.raises(MedtlError, match="--num_processes 1"):
        check_search(Recipe(output_dir=str(tmp_path), search=4))


def test_space_is_read_from_text_and_yaml(tmp_path):
    expected = {"learning_rate": [1e-6, 1e-3, "log"], "unfreeze_blocks": [1, 2, 4], "augmentation": ["light", "brain"]}
    text = '{"learning_rate": [1e-6, 1e-3, "log"], "unfreeze_blocks": [1, 2, 4], "augmentation": ["light", "brain"]}'
    assert read_space(text) == expected
    (tmp_path / "c.yaml").write_text(f"search_space: {text}\n")
    for argv in (["--config", str(tmp_path / "c.yaml")], ["--search_space", text]):
        recipe = Recipe.from_cli({"output_dir": str(tmp_path)}, argv)
        assert read_space(recipe.search_space) == expected


def test_strategy_options_are_sampled_only_for_that_strategy():
    space = {"lora_rank": [4, 8, 16], "layer_decay": [0.5, 0.9], "strategy": ["lora", "differential", "full"]}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    samples = [sample(study.ask(), space, "full") for _ in range(30)]
    sampled_options = {"lora": {"lora_rank"}, "differential": {"layer_decay"}, "full": set()}
    assert {values["strategy"] for values in samples} == set(sampled_options)
    for values in samples:
        assert values.keys() - {"strategy"} == sampled_options[values["strategy"]]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.py")), ids=lambda path: path.stem)
def test_each_recipe_has_a_default_space(path, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "recipes")
    values = importlib.import_module(path.stem).RECIPE | {"output_dir": str(tmp_path), "search": 20}
    recipe = Recipe(**values)
    space = check_search(recipe)
    assert "weight_decay" in space
    assert 3 <= len(space) <= 6
    for name, ends in space.items():  # the recipe itself is in the space, as the first trial
        assert search_space.own_value(recipe, name, ends) is not None, name


def test_losses_are_minimised_and_scores_maximised(tmp_path):
    for metric, higher in {"loss": False, "roc_auc": True, "brier": False, "ece": False, "dice": True}.items():
        assert Recipe(output_dir=str(tmp_path), metric_for_best_model=metric).greater_is_better is higher


def test_dry_run_shows_the_space_and_writes_nothing(phantoms, tiny_checkpoint, tmp_path, capsys):
    run(Recipe(**search_options(phantoms, tiny_checkpoint("vit"), tmp_path / "run", dry_run=True)))
    assert "0.0001 to 0.01, logarithmic" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
