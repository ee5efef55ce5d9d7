"""Figures of a finished run, drawn again from its predictions."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hf_medtl.common.run_folder import RunFolder
from hf_medtl.evaluation import plots
from hf_medtl.evaluation.matplotlib_backend import figure_formats
from hf_medtl.evaluation.names import METRIC_NAMES
from hf_medtl.tasks import task_for_results


def redraw_figures(folder: Path, formats: str = "png") -> None:
    """Draw the figures of a finished run again, as far as its files have what they show.

    Training history needs a checkpoint, the other figures predictions.csv. Outlines of masks and risk-coverage curves
    are left as they are: only training and `hf-medtl evaluate` have what they show.

    Args:
        folder: run folder.
        formats: as `--figures` of training, such as "png,pdf".

    Raises:
        MedtlError: the run is not finished, or a format is unknown.
    """
    with figure_formats(formats), TemporaryDirectory() as temporary:
        run, drawn = RunFolder(folder).check_finished(), Path(temporary)
        task, (log, best) = task_for_results(run.results), run.history()
        if log:
            plots.training_history(log, best, drawn / "history.png", task.main_metric, METRIC_NAMES[task.main_metric])
        task.pool_folds(run.predictions, [run.results], drawn, "test split")
        (folder / "figures").mkdir(exist_ok=True)
        for path in sorted(drawn.iterdir()):
            run.write(f"figures/{path.name}", path.read_bytes())
