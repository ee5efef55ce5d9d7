"""Learning tasks: classification, multilabel classification and segmentation."""

from typing import Any

from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.errors import MedtlError
from hf_medtl.predict import Predictor
from hf_medtl.tasks.base import Task
from hf_medtl.tasks.classification import Classification
from hf_medtl.tasks.multilabel import MultiLabelClassification
from hf_medtl.tasks.segmentation import Segmentation

__all__ = ["TASKS", "Classification", "MultiLabelClassification", "Segmentation", "Task", "get_task"]

TASKS: dict[str, Task] = {task.name: task for task in (Classification(), MultiLabelClassification(), Segmentation())}


def get_task(pipeline: str | None, multilabel: bool = False) -> Task:
    """Return a task by the name of its pipeline.

    Args:
        pipeline: image-classification or image-segmentation, as --task has it.
        multilabel: True if an image can have any number of labels.

    Raises:
        MedtlError: an unknown task.
    """
    if multilabel and pipeline == Classification.pipeline:
        return TASKS["multilabel"]
    names = {task.pipeline: task for task in (TASKS["classification"], TASKS["segmentation"])}
    if pipeline not in names:
        raise MedtlError(f"--task must be one of {', '.join(names)}, but is {pipeline!r}.")
    return names[pipeline]


def task_for_results(results: dict[str, Any]) -> Task:
    """Return the task that wrote a results.json."""
    return get_task(results["task"], "per_label" in results)


def task_for_dataset(loaded: LoadedDataset) -> Task:
    """Return the task of a data set, which is multilabel if its images can have any number of labels."""
    return get_task(loaded.spec.task, loaded.spec.multilabel)


def task_for_predictor(predictor: Predictor) -> Task:
    """Return the task of a loaded model."""
    if predictor.is_segmentation:
        return TASKS["segmentation"]
    return TASKS["multilabel" if predictor.multilabel else "classification"]
