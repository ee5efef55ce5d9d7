"""Hyperparameter search: an Optuna study whose trials are whole runs, judged on the validation split."""

import dataclasses
import logging
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
import yaml
from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import Trainer, TrainerCallback

from hf_medtl.common.files import write
from hf_medtl.data.loading import Loaded
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation import plots
from hf_medtl.runs.folder import SEARCH, finish
from hf_medtl.runs.search_space import SEARCHABLE, Space, draw, has, own_value, trial_recipe
from hf_medtl.training.recipe import MODELS, Recipe
from hf_medtl.training.trainer import MedicalTrainer

logger = logging.getLogger("hf_medtl")


def search(
    recipe: Recipe, space: Space, loaded: Loaded, trainer_of: Callable[[Recipe, type[MedicalTrainer]], MedicalTrainer]
) -> Path:
    """Run the trials that are still missing, write best.yaml, trials.csv and figures/search.png; return the folder.

    The first trial is the recipe as it is, if the space has room for it. What a trial tries depends on the seed and
    on the finished trials alone, so that a search which was killed and goes on equals one that was not.

    Args:
        recipe: whose `search` is the number of trials.
        space: of `check_search`.
        loaded: the data set; its test split is not looked at.
        trainer_of: recipe, class -> the trainer of that class which a run of the recipe would have.

    Raises:
        MedtlError: the folder's search is of another recipe or space or still runs, or no trial succeeded.
        KeyboardInterrupt: after Ctrl-C. The same command goes on.

    From the sixth trial on, one that is worse than the median of the others at its second evaluation or later is given
    up (optuna.pruners.MedianPruner).

    Source: Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization (the sampler).
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = Path(str(recipe.output_dir))
    try:
        with FileLock(folder / ".search.lock", timeout=0):  # the system lets go of it if the process is killed
            study = _open(recipe, space, folder)
            _run_missing(recipe, space, study, trainer_of)
            _report(recipe, folder, study)
    except Timeout as error:
        raise MedtlError(f"Another process searches in {folder}. Wait for it, or give another --output_dir.") from error
    finish(folder)
    return folder


def _options(recipe: Recipe, folder: Path) -> dict[str, Any]:
    return {
        "storage": f"sqlite:///{folder / SEARCH}",
        "study_name": "search",
        "load_if_exists": True,
        "direction": "maximize" if recipe.greater_is_better else "minimize",
    }


def _open(recipe: Recipe, space: Space, folder: Path) -> Any:
    """The study of a folder, without trials that were killed."""
    import optuna

    study = optuna.create_study(**_options(recipe, folder))
    usual = {f.name: f.default for f in dataclasses.fields(Recipe)}
    chosen = yaml.safe_load(recipe.to_yaml()) | {"search_space": space, "search": 0}  # the number may be raised
    settings = {key: value for key, value in chosen.items() if value != usual[key]}
    before = study.user_attrs.get("settings", settings)
    for key in sorted(before.keys() | settings.keys()):
        if before.get(key) != settings.get(key):
            raise MedtlError(
                f"--{key} was {before.get(key, 'not given')} in the search of {folder} and is "
                f"{settings.get(key, 'not given')} now, so the trials can't be compared. Give what it was, or another "
                "--output_dir."
            )
    study.set_user_attr("settings", settings)
    states = optuna.trial.TrialState
    for trial in study.get_trials(states=(states.RUNNING,)):
        study.tell(trial.number, state=states.FAIL)
    if not done(study) and not study.get_trials(states=(states.WAITING,)):
        own = {name: own_value(recipe, name, values) for name, values in space.items() if has(recipe.strategy, name)}
        if None not in own.values():
            study.enqueue_trial(own)
    return study


def done(study: Any) -> list[Any]:
    """The trials of a study that ended by themselves, finished or pruned."""
    from optuna.trial import TrialState

    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))


def _sampler(seed: int, finished: int) -> Any:
    from optuna.samplers import TPESampler

    return TPESampler(seed=int(np.random.SeedSequence([seed, finished]).generate_state(1)[0]))


class Unsaved(MedicalTrainer):
    """The trainer of a run, but for checkpoints: twenty trials would fill the disk."""

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        pass


class Judge(TrainerCallback):
    """Reports each evaluation to the study, and ends training that is not worth going on; `why` says why."""

    def __init__(self, trial: Any, metric: str) -> None:
        self.trial, self.metric, self.evaluations, self.why = trial, metric, 0, ""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self.evaluations += 1
        value = metrics[self.metric]
        if not math.isfinite(value):
            self.why = f"{self.metric} is {value}"
        else:
            self.trial.report(value, self.evaluations)
            if self.trial.should_prune():
                self.why = f"worse than the median of the others after {self.evaluations} evaluations"
        control.should_training_stop |= bool(self.why)


class Trials(Trainer):
    """`Trainer.hyperparameter_search` over whole runs.

    Trainer sets a trial's values on its arguments and trains again; what strategy, loss and callbacks were made from
    the old ones would stay. Here each trial has a recipe and a trainer of its own.
    """

    def __init__(self, recipe: Recipe, run_trial: Callable[[Any], float]) -> None:
        # Trainer asks for a model and data; neither is used.
        super().__init__(args=recipe, model_init=lambda: cast(Any, nn.Linear(1, 1)), eval_dataset=cast(Any, [0]))
        self.run_trial = run_trial
        self.objective: float | None = None

    def train(self, *args: Any, trial: Any = None, **kwargs: Any) -> Any:
        """Set `objective`, as hyperparameter_search expects it."""
        self.objective = self.run_trial(trial)


def _run_missing(recipe: Recipe, space: Space, study: Any, trainer_of: Callable[..., MedicalTrainer]) -> None:
    import optuna

    def run_trial(trial: Any) -> float:
        values = draw(trial, space, recipe.strategy)
        number = len(done(study)) + 1
        # Drawing starts anew for each trial: the state of a sampler does not outlive its process.
        trial.study.sampler = _sampler(recipe.seed, number)
        shown = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        logger.info("Trial %d of %d: %s", number, recipe.search, shown)
        judge = Judge(trial, f"eval_{str(recipe.metric_for_best_model).removeprefix('eval_')}")
        why = _attempt(lambda: trainer_of(trial_recipe(recipe, values), Unsaved), judge)
        trial.set_user_attr("evaluations", judge.evaluations)
        if isinstance(why, str):
            trial.set_user_attr("why", why)
            logger.info("Trial %d of %d is given up: %s", number, recipe.search, why)
            raise optuna.TrialPruned(why)
        logger.info("Trial %d of %d: %s %.4f", number, recipe.search, judge.metric, why)
        return why

    missing = recipe.search - len(done(study))
    if missing <= 0:
        return
    quiet = recipe.variant(disable_tqdm=recipe.disable_tqdm)  # its own: Trainer changes its arguments
    try:
        Trials(quiet, run_trial).hyperparameter_search(
            hp_space=lambda trial: {},
            backend="optuna",
            n_trials=missing,
            sampler=_sampler(recipe.seed, len(done(study))),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2),
            **_options(recipe, Path(str(recipe.output_dir))),
        )
    except KeyboardInterrupt as stop:
        ended = f"{len(done(study))} of {recipe.search} trials are finished. Go on: the same command."
        raise KeyboardInterrupt(ended) from stop
    except ValueError:
        if study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)):
            raise
        # No trial succeeded: Optuna has no best one.


def _attempt(make: Callable[[], MedicalTrainer], judge: Judge) -> float | str:
    """Train; the best value of validation, or why there is none."""
    trainer = None
    try:
        trainer = make()
        trainer.add_callback(judge)
        trainer.train()
    except (MedtlError, ValueError, torch.OutOfMemoryError) as error:  # metrics refuse values that are not finite
        if trainer is not None:
            trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)  # gives Ctrl-C back
        return str(error).splitlines()[0]
    if trainer.progress.interrupted:
        raise KeyboardInterrupt
    return judge.why or float(trainer.state.best_metric)  # type: ignore[arg-type]


def _report(recipe: Recipe, folder: Path, study: Any) -> None:
    from optuna.importance import get_param_importances
    from optuna.trial import TrialState

    trials = done(study)
    rows = [
        {
            "trial": number,
            "state": trial.state.name.lower(),
            "value": trial.value,
            **trial.params,
            "evaluations": trial.user_attrs["evaluations"],
            "seconds": round(trial.duration.total_seconds(), 1),
            "why": trial.user_attrs.get("why", ""),
        }
        for number, trial in enumerate(trials, 1)
    ]
    table = pd.DataFrame(rows)
    write(folder / "trials.csv", table.to_csv(index=False))
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        raise MedtlError(
            f"None of {len(trials)} trials gave a value. The first was given up since {rows[0]['why']}. See "
            f"{folder / 'trials.csv'}, and search elsewhere: --search_space, with another --output_dir."
        )
    best = study.best_trial
    write(folder / "best.yaml", trial_recipe(recipe, best.params).to_yaml())
    importances = get_param_importances(study) if len(complete) > 3 else {}
    metric = str(recipe.metric_for_best_model).removeprefix("eval_")
    (folder / "figures").mkdir(exist_ok=True)
    plots.trials(
        [trial.value for trial in trials],
        [trial in complete for trial in trials],
        bool(recipe.greater_is_better),
        importances,
        f"Validation {metric}",
        folder / "figures" / "search.png",
    )
    _show(recipe, folder, table, metric)


def _show(recipe: Recipe, folder: Path, table: pd.DataFrame, metric: str) -> None:
    """Print the best trials and the command that trains and tests the best."""
    console = Console()
    finished = table[table["state"] == "complete"].sort_values("value", ascending=not recipe.greater_is_better)
    title = f"The best of {len(table)} trials ({len(table) - len(finished)} given up), by the validation split"
    best = finished.head(5)
    shown = Table("trial", *best["trial"].astype(str), title=title, title_justify="left")
    for name in ("value", *(name for name in table.columns if name in SEARCHABLE)):
        cells = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in best[name]]
        shown.add_row(metric if name == "value" else name, *cells)
    console.print(shown)
    places = {name: getattr(recipe, name) for name in ("data_dir", "external_data_dir", "splits")}
    for name in MODELS:  # best.yaml has a folder's name without its place
        its = getattr(recipe, name)
        places[name] = its if its and Path(its).exists() else None
    script = sys.argv[0] if sys.argv[0].endswith(".py") else "RECIPE"
    values = {"config": folder / "best.yaml", "output_dir": f"{folder}-best"} | places
    flags = [f"--{name} {shlex.quote(str(value))}" for name, value in values.items() if value]
    console.print(
        f"\nThe search is in [bold]{folder}[/bold]: best.yaml, trials.csv, figures/search.png, {SEARCH}. The test "
        "split was not looked at.\n\nTrain the best and test it:\n  "
        f"accelerate launch {shlex.quote(script)} {' '.join(flags)}\n",
        highlight=False,
        soft_wrap=True,
    )
