"""What a finished run leaves to read: predictions, figures, model card and results."""

import hashlib
from pathlib import Path
from typing import Any

from hf_medtl.data.load import Loaded
from hf_medtl.evaluation import plots
from hf_medtl.evaluation.drop import drops
from hf_medtl.models.preprocessing import describe_processor
from hf_medtl.publish.card import NAMES, card
from hf_medtl.publish.origin import origin
from hf_medtl.publish.wording import split_prose, wording
from hf_medtl.training.environment import environment, peak_memory_mb
from hf_medtl.training.folder import write
from hf_medtl.training.recipe import Recipe
from hf_medtl.training.story import story
from hf_medtl.training.tasks import Task
from hf_medtl.training.trainer import MedicalTrainer

WORST = 5  # pictures that the card says the model does worst on


def report(
    recipe: Recipe,
    task: Task,
    folder: Path,
    tested: list[tuple[Loaded, Any]],
    processor: Any,
    trainer: MedicalTrainer,
    unlike: dict[str, Any],
    kwh: float | None,
) -> dict[str, Any]:
    """Write predictions, figures/, README.md and results.json; return the results.

    Args:
        tested: the data set and the answers on its test split, and those of an external one, if any.
        unlike: of `find_outliers`.
        kwh: energy of training, if it was measured.
    """
    loaded, answers = tested[0]
    precision = trainer.accelerator.mixed_precision.replace("no", "float32")  # accelerate's own flags included
    measured = [
        {"dataset": data.spec.name, "task": data.spec.task, "split": "test"}
        | task.measure(data, values, trainer.model.config)
        for data, values in tested
    ]
    result = {
        **measured[0],
        **({"outliers": unlike} if unlike else {}),
        "train_seconds": round(trainer.progress.total_seconds(), 1),
        "peak_memory_mb": round(peak_memory_mb(), 1),
        **({} if kwh is None else {"energy_kwh": kwh}),
        "splits_sha256": hashlib.sha256((folder / "splits.csv").read_bytes()).hexdigest(),
        "environment": environment(precision, recipe.world_size),
    }
    table = task.predictions(loaded, answers)
    write(folder / "predictions.csv", table.to_csv(index=False))
    if len(tested) > 1:
        outside, values = tested[1]
        fall = drops(measured[0]["metrics"], measured[1]["metrics"])
        result["external"] = measured[1] | {"drop": fall, "excluded": left_out(outside)}
        write(folder / "external.csv", task.predictions(outside, values).to_csv(index=False))

    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    log, best = trainer.state.log_history, trainer.state.best_global_step
    plots.history(log, best, figures / "history.png", task.watched, NAMES[task.watched])
    task.draw(folder, figures, loaded, answers, result)

    base = task.base_model(recipe)
    facts = {
        **story(recipe, loaded, trainer.state),
        "results": result,
        "spec": loaded.spec,
        "external_spec": tested[-1][0].spec,
        "counts": loaded.counts(),
        "excluded": left_out(loaded),
        "name": str(recipe.hub_model_id) if recipe.push_to_hub else folder.name,
        "worst": task.worst(table, result, WORST),
        "origin": origin(*base) if base else None,
        "start": task.start(recipe, trainer.model),
        "license": recipe.model_license,
        "model_class": type(trainer.model).__name__,
        "parameters": trainer.model.num_parameters(),
        "processor": describe_processor(processor),
        "own_code": sorted(path.name for path in folder.glob("*.py")),
        "recipe_yaml": recipe.to_yaml(),
    }
    findings, prose = written(recipe)
    facts["wording"] = wording(findings, result, loaded.spec.title)
    if facts["wording"]:  # Predictor and the Space say it
        trainer.model.config.update({"wording": facts["wording"]})
        trainer.model.config.save_pretrained(folder)
    write(folder / "README.md", card(facts, prose))
    write(folder / "results.json", result)
    return result


def written(recipe: Recipe) -> tuple[dict[str, str], str]:
    """Words for the labels, and prose, of the recipe's model card."""
    return split_prose(Path(recipe.model_card).read_text(encoding="utf-8") if recipe.model_card else "")


def left_out(loaded: Loaded) -> dict[str, int]:
    """Kind -> number of the files that are in no split."""
    return {str(kind): int(number) for kind, number in loaded.excluded["kind"].value_counts().items()}
