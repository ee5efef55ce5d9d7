"""Hyperparameter search: an Optuna study whose trials are whole trainings, scored on the validation split."""

import contextlib
import dataclasses
import logging
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import yaml
from rich.table import Table
from transformers import TrainerCallback

from hf_medtl.common.console import make_console
from hf_medtl.common.csv_cells import to_csv
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.common.system import MEMORY_MESSAGES, explain_shortage
from hf_medtl.errors import MedtlError, Unavailable, UnreadableImage
from hf_medtl.evaluation import plots
from hf_medtl.runs.folder import SEARCH_DB
from hf_medtl.runs.search_space import MEMORY_OPTIONS, SEARCHABLE, Space, own_value, sample, trial_recipe
from hf_medtl.runs.sweep import Sweep, lock_sweep
from hf_medtl.training.options import MODEL_OPTIONS
from hf_medtl.training.recipe import Recipe, uses_option
from hf_medtl.training.trainer import MedicalTrainer

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger("hf_medtl")

MakeTrainer = Callable[[Recipe, type[MedicalTrainer]], MedicalTrainer]


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """One trial of a search, by its number among those that ended, from 1."""

    number: int
    study: "optuna.Study"

    @property
    def is_finished(self) -> bool:
        """True if so many trials have ended."""
        return len(ended_trials(self.study)) >= self.number


def search(recipe: Recipe, space: Space, make_trainer: MakeTrainer) -> Path:
    """Run the trials that are missing; write best.yaml, trials.csv and figures/search.png.

    The first trial is the recipe as it is, if the space contains it. What a trial samples depends only on the seed and
    on the trials that ended, so that a search which was killed and resumed equals one that was not. From the sixth
    trial on, one that is worse than the median of the others at its second evaluation or later is stopped
    (`optuna.pruners.MedianPruner`).

    Source: Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization (the sampler).

    Args:
        recipe: The recipe around which is searched; its `search` is the number of trials.
        space: The search space, of `check_search`.
        make_trainer: Recipe and class -> the trainer of that class for a run of the recipe.

    Returns:
        The output folder.

    Raises:
        MedtlError: The folder's search is of another recipe or space or still runs, or no trial succeeded.
        KeyboardInterrupt: After Ctrl-C. The same command resumes the search.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = Path(str(recipe.output_dir))
    with lock_sweep(folder, "search"):
        study = _open_study(recipe, space, folder)
        trials = [Trial(number, study) for number in range(1, recipe.search + 1)]
        Sweep(trials, "trials").run_missing(lambda trial: _run_trial(trial, recipe, space, make_trainer))
        _write_results(recipe, RunFolder(folder), study)
    RunFolder(folder).mark_finished()
    return folder


def _open_study(recipe: Recipe, space: Space, folder: Path) -> "optuna.Study":
    """Open the study of a folder, marking trials that were killed as failed."""
    import optuna

    study = optuna.create_study(
        storage=f"sqlite:///{folder / SEARCH_DB}",
        study_name="search",
        load_if_exists=True,
        direction="maximize" if recipe.greater_is_better else "minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2),
    )
    defaults = {f.name: f.default for f in dataclasses.fields(Recipe)}
    chosen = yaml.safe_load(recipe.to_yaml()) | {"search_space": space, "search": 0}  # the number may be raised
    settings = {key: value for key, value in chosen.items() if value != defaults[key]}
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
    if not ended_trials(study) and not study.get_trials(states=(states.WAITING,)):
        own = {
            name: own_value(recipe, name, values)
            for name, values in space.items()
            if uses_option(recipe.strategy, name)
        }
        if None not in own.values():
            study.enqueue_trial(own)
    return study


def ended_trials(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """Return the trials of a study that ended by themselves, complete or pruned."""
    from optuna.trial import TrialState

    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))


class TrialTrainer(MedicalTrainer):
    """Trainer without checkpoints: those of twenty trials would fill the disk."""

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        pass


class TrialCallback(TrainerCallback):
    """Reports each evaluation to the trial, and stops training that is not worth continuing.

    Args:
        trial: The Optuna trial.
        metric: Key of the metric in the logs of evaluation.

    Attributes:
        evaluations: How many there were.
        why: The reason for stopping; empty while there is none.
    """

    def __init__(self, trial: "optuna.Trial", metric: str) -> None:
        self.trial, self.metric, self.evaluations, self.why = trial, metric, 0, ""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Report the metric, and stop if it is not finite or the trial is pruned."""
        self.evaluations += 1
        value = metrics[self.metric]
        if not math.isfinite(value):
            self.why = f"{self.metric} is {value}"
        else:
            self.trial.report(value, self.evaluations)
            if self.trial.should_prune():
                self.why = f"worse than the median of the others after {self.evaluations} evaluations"
        control.should_training_stop |= bool(self.why)


def _run_trial(trial: Trial, recipe: Recipe, space: Space, make_trainer: MakeTrainer) -> None:
    """Sample values, train with them, and tell the study the value, or that the trial is pruned.

    Raises:
        MedtlError: Files, disk or memory were missing. The trial counts as failed, and the same search makes it again.
    """
    from optuna.exceptions import StorageInternalError
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    study, name = trial.study, f"Trial {trial.number} of {recipe.search}"
    # A sampler of its own for each trial: the state of a sampler does not outlive its process.
    seed = np.random.SeedSequence([recipe.seed, trial.number]).generate_state(1)[0]
    study.sampler = TPESampler(seed=int(seed))
    asked = study.ask()
    try:
        values = sample(asked, space, recipe.strategy)
        shown = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        logger.info("%s: %s", name, shown)
        callback = TrialCallback(asked, f"eval_{str(recipe.metric_for_best_model).removeprefix('eval_')}")
        try:
            result = _train(lambda: make_trainer(trial_recipe(recipe, values), TrialTrainer), callback)
        except Exception as error:
            if not _is_own(error, study, space):
                raise
            result = _reason(error)
        asked.set_user_attr("evaluations", callback.evaluations)
        if isinstance(result, str):
            asked.set_user_attr("why", result)
    except BaseException as error:  # Ctrl-C, too
        with contextlib.suppress(StorageInternalError):  # on a full disk; it counts as failed when it is opened again
            asked.set_user_attr("why", _reason(error))
            study.tell(asked, state=TrialState.FAIL)
        shortage = explain_shortage(error) or (str(error) if isinstance(error, MedtlError) else None)
        if shortage:
            raise MedtlError(
                f"{name} failed, not for its values: {shortage} The same command tries it again."
            ) from error
        raise
    if isinstance(result, str):
        study.tell(asked, state=TrialState.PRUNED)
        logger.info("%s is stopped: %s", name, result)
    else:
        study.tell(asked, result)
        logger.info("%s: %s %.4f", name, callback.metric, result)


def _is_own(error: BaseException, study: "optuna.Study", space: Space) -> bool:
    """Return True if a trial failed for its values; False if what all trials need is missing: files, disk, memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in MEMORY_MESSAGES):
        # Where the values of another trial fit, those of this one, if they need memory, may be too large.
        return any(trial.value is not None for trial in ended_trials(study)) and not {*MEMORY_OPTIONS}.isdisjoint(space)
    if not isinstance(error, MedtlError | ValueError):  # metrics refuse values that are not finite
        return False
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Unavailable | UnreadableImage | OSError | MemoryError):
            return False
        cause = cause.__cause__ or cause.__context__
    return True


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _train(make: Callable[[], MedicalTrainer], callback: TrialCallback) -> float | str:
    """Train; return the best validation value, or the reason why training was stopped."""
    trainer = None
    try:
        trainer = make()
        trainer.add_callback(callback)
        trainer.train()
    except Exception:
        if trainer is not None:
            trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)  # gives Ctrl-C back
        raise
    if trainer.progress.interrupted:
        raise KeyboardInterrupt
    return callback.why or float(trainer.state.best_metric)  # type: ignore[arg-type]


def _write_results(recipe: Recipe, run: RunFolder, study: "optuna.Study") -> None:
    from optuna.importance import get_param_importances
    from optuna.trial import TrialState

    trials, folder = ended_trials(study), run.path
    rows = [
        {
            "trial": number,
            "state": trial.state.name.lower(),
            "value": trial.value,
            **trial.params,
            "evaluations": trial.user_attrs["evaluations"],
            "seconds": round(trial.duration.total_seconds(), 1) if trial.duration else None,
            "why": trial.user_attrs.get("why", ""),
        }
        for number, trial in enumerate(trials, 1)
    ]
    table = pd.DataFrame(rows)
    run.write("trials.csv", to_csv(table))
    complete = [trial.state == TrialState.COMPLETE for trial in trials]
    if not any(complete):
        raise MedtlError(
            f"None of {len(trials)} trials gave a value. The first was stopped since {rows[0]['why']}. See "
            f"{folder / 'trials.csv'}, and search elsewhere: --search_space, with another --output_dir."
        )
    run.write("best.yaml", trial_recipe(recipe, study.best_trial.params).to_yaml())
    metric = str(recipe.metric_for_best_model).removeprefix("eval_")
    (folder / "figures").mkdir(exist_ok=True)
    plots.search_trials(
        [trial.value for trial in trials],
        complete,
        bool(recipe.greater_is_better),
        get_param_importances(study) if sum(complete) > 3 else {},
        f"Validation {metric}",
        folder / "figures" / "search.png",
    )
    _show_best(recipe, folder, table, metric)


def _show_best(recipe: Recipe, folder: Path, table: pd.DataFrame, metric: str) -> None:
    """Print the best trials and the command that trains and tests the best."""
    console = make_console()
    complete = table[table["state"] == "complete"].sort_values("value", ascending=not recipe.greater_is_better)
    title = f"The best of {len(table)} trials ({len(table) - len(complete)} stopped early), by the validation split"
    best = complete.head(5)
    shown = Table("trial", *best["trial"].astype(str), title=title, title_justify="left")
    for name in ("value", *(name for name in table.columns if name in SEARCHABLE)):
        cells = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in best[name]]
        shown.add_row(metric if name == "value" else name, *cells)
    console.print(shown)
    options = {name: getattr(recipe, name) for name in ("data_dir", "external_data_dir", "splits")}
    for name in MODEL_OPTIONS:  # best.yaml has only the name of a local folder
        model = getattr(recipe, name)
        options[name] = model if model and Path(model).exists() else None
    script = f"python {shlex.quote(sys.argv[0])}" if sys.argv[0].endswith(".py") else "hf-medtl train"
    options = {"config": folder / "best.yaml", "output_dir": f"{folder}-best"} | options
    flags = [f"--{name} {shlex.quote(str(value))}" for name, value in options.items() if value]
    console.print(
        f"\nThe search is in {folder}: best.yaml, trials.csv, figures/search.png, {SEARCH_DB}. The test "
        "split was not used.\n\nTrain the best and test it:\n  "
        f"{script} {' '.join(flags)}\n",
        soft_wrap=True,
    )
