"""A run -> ONNX or OpenVINO, and how far what is exported answers as the run does, on the run's own test pictures."""

import copy
import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from hf_medtl.common.files import write_atomic
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.data.images import read_image
from hf_medtl.data.inputs import image_files
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.intervals import Interval, to_json
from hf_medtl.evaluation.names import METRIC_NAMES
from hf_medtl.evaluation.paired import paired_differences
from hf_medtl.export.onnx import FORMATS, Ask, Pixels, quantise, write_onnx
from hf_medtl.export.preprocessing_spec import contract
from hf_medtl.models.benchmark import measure_latencies
from hf_medtl.predict import Prediction, Predictor
from hf_medtl.publish.base_model import sha256_of
from hf_medtl.publish.card import put_exports
from hf_medtl.publish.check import weight_files
from hf_medtl.runs.finished import load_run_data
from hf_medtl.tasks import task_for_results
from hf_medtl.training.runtime import environment

BATCH = 16  # pictures that are in memory at a time
MOST_CHANGED = 0.005  # share of decisions that an export may change
CALIBRATION = 128  # pictures that the limits of 8-bit activations come from, at most


@dataclass(frozen=True)
class Pictures:
    """What an export is compared on.

    Attributes:
        tested: files.
        calibration: files that 8 bits are calibrated with, none of which is tested.
        run: the run whose test split this is; None for pictures without labels.
        judge: places in `tested` and predictions of these -> rows of predictions.csv; None without labels.
    """

    tested: list[Path]
    calibration: list[Path]
    run: RunFolder | None = None
    judge: Callable[[slice, Sequence[Prediction]], pd.DataFrame] | None = None


def export(
    run: Path,
    name: str,
    int8: bool = False,
    out: Path | None = None,
    data_dir: Path | None = None,
    force: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Write a run in another format, unless it then decides otherwise; return the folder and what is in export.json.

    The folder gets the model, preprocessing.json (see `contract`) and export.json. In RUN/export the run's card says
    what the export is worth, too.

    Args:
        run: folder of a finished run, or of an ensemble. The test split is that of its splits.csv. Without one, as in
            ensembles of folds, which have no pictures that no member has seen, nothing is said of metrics.
        name: one of FORMATS.
        int8: in 8 bits, calibrated on the validation split.
        out: new or empty folder; RUN/export/FORMAT, or FORMAT-int8, if not given, where an older export is replaced.
        data_dir: the run's data; downloaded if not given. For a folder without splits.csv: any pictures of its kind.
        force: keep an export that changes more than MOST_CHANGED of the decisions.

    Raises:
        MedtlError: no such format, no run, no data or other data than the run's, no packages; an export that changes
            decisions, of which nothing is kept.
    """
    if name not in FORMATS:
        raise MedtlError(f"--format is one of {', '.join(FORMATS)}, found {name!r}.")
    if out and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MedtlError(f"--out {out} is not empty. Give a folder that is new or empty.")
    kind, its = f"{name}-int8" if int8 else name, FORMATS[name]
    folder = out or run / "export" / kind
    predictor = Predictor.from_pretrained(run, device="cpu")
    model, processor = predictor.model, predictor.processor
    pictures = find_pictures(run, predictor, data_dir, int8)
    inputs = processor([read_image(pictures.tested[0])], return_tensors="pt")
    height, width = inputs["pixel_values"].shape[-2:]

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
        place, made = Path(temporary) / "made", Path(temporary) / "onnx" / "model.onnx"
        place.mkdir()
        made.parent.mkdir()
        write_onnx(model, height, width, made)
        if int8:
            quantise(made, made.with_name("int8.onnx"), prepared(processor, pictures.calibration))
            made.with_name("int8.onnx").replace(made)
            made.with_name("model.onnx.data").unlink(missing_ok=True)
        file = its.write(made, place)
        threads = torch.get_num_threads()
        ask = its.open(file, threads)
        found = {
            "format": name,
            "int8": int8,
            "file": file.name,
            "sha256": sha256_of(sorted(place.iterdir())),
            "weights_sha256": sha256_of(weight_files(run)),
            "megabytes": round(sum(path.stat().st_size for path in place.iterdir()) / 1e6, 2),
            **compare(model, processor, ask, pictures),
            "milliseconds": dict(
                zip(
                    ("torch", "exported"),
                    (time.median for time in measure_latencies([model, speaking(model, ask)], [dict(inputs)] * 2)),
                    strict=True,
                )
            ),
            "threads": threads,
            "device": environment("float32", 1)["device"],
            "versions": {package: importlib.metadata.version(package) for package in ("torch", its.package)},
            "forced": False,
        }
        if found["decisions_changed"] > MOST_CHANGED:
            if not force:
                raise MedtlError(refusal(kind, found))
            found["forced"] = True
        shape = ask(inputs["pixel_values"].numpy()).shape
        write_atomic(place / "preprocessing.json", contract(model, processor, (height, width), shape, file.name))
        write_atomic(place / "export.json", found)
        if folder.exists():
            shutil.rmtree(folder)
        place.replace(folder)
    if out is None and (run / "README.md").is_file():
        put_exports(run)
    return folder, found


def find_pictures(run: Path, predictor: Predictor, data_dir: Path | None, int8: bool) -> Pictures:
    """The test split of a run, or, where it has no splits.csv, the pictures of a folder.

    Raises:
        MedtlError: there are none.
    """
    if not (run / "splits.csv").is_file():
        if data_dir is None:
            raise MedtlError(
                f"{run} has no splits.csv, so it has no test pictures of its own to compare its export on. Give "
                "--data_dir with any pictures of its kind: a folder."
            )
        files = image_files(data_dir)
        if int8 and len(files) < 2:
            raise MedtlError(f"{data_dir} has one picture. --int8 needs some to calibrate with, and others to compare.")
        return Pictures(files[1::2], files[::2][:CALIBRATION]) if int8 else Pictures(files, [])
    read = RunFolder(run).check_finished()
    loaded = load_run_data(read, data_dir)
    rows = {split: its.index.to_numpy() for split, its in loaded.table.groupby("split")}
    if int8 and "validation" not in rows:
        raise MedtlError(f"{run} has no validation pictures, and --int8 is calibrated on these. Leave it out.")
    drawn = np.random.default_rng(0).permutation(rows.get("validation", []))[:CALIBRATION]
    task = task_for_results(read.results)

    def judge(places: slice, predictions: Sequence[Prediction]) -> pd.DataFrame:
        return task.prediction_rows(predictor.config, loaded, rows["test"][places].tolist(), predictions)

    tested, calibration = (
        [loaded.root / path for path in loaded.table["path"][list(its)]] for its in (rows["test"], np.sort(drawn))
    )
    return Pictures(tested, calibration, read, judge)


def prepared(processor: Any, paths: Sequence[Path]) -> Iterator[Pixels]:
    """Each picture (1, 3, H, W) as the model gets it."""
    for path in paths:
        yield processor([read_image(path)], return_tensors="pt")["pixel_values"].numpy()


def speaking(model: PreTrainedModel, ask: Ask) -> PreTrainedModel:
    """A model of the same class and configuration whose logits come from elsewhere.

    So all that is done with a model, decisions and postprocessing included, is done with an export by the same code.
    """
    twin = copy.copy(model)

    def forward(pixel_values: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=torch.from_numpy(ask(pixel_values.numpy())))

    twin.forward = forward
    return twin


def compare(model: PreTrainedModel, processor: Any, ask: Ask, pictures: Pictures) -> dict[str, Any]:
    """How an export's answers differ from the model's.

    Args:
        model, processor: of the run.
        ask: pixel_values -> logits, of the export.
        pictures: to compare on.

    Returns:
        pictures (how many), split ("test", or null), largest_logit_difference, decisions_changed (share of pictures; of
        masks the mean share of pixels), and with labels metric (its name), torch and exported (value with 95 % limits)
        and difference (paired, with limits and p-value; limits are null where the two never differ).

    Raises:
        MedtlError: the export gives numbers that are none.
    """
    said: dict[str, Pixels] = {}

    @torch.inference_mode()
    def ours(pixels: Pixels) -> Pixels:
        said["torch"] = model(pixel_values=torch.from_numpy(pixels)).logits.numpy()
        return said["torch"]

    def theirs(pixels: Pixels) -> Pixels:
        said["exported"] = ask(pixels)
        if not np.isfinite(said["exported"]).all():
            raise MedtlError("The export gives numbers that are none, where the run does not. Nothing was kept.")
        return said["exported"]

    ways = {name: Predictor(speaking(model, its), processor) for name, its in (("torch", ours), ("exported", theirs))}
    tables: dict[str, list[pd.DataFrame]] = {name: [] for name in ways}
    largest, changed = 0.0, []
    for start in range(0, len(pictures.tested), BATCH):
        places = slice(start, start + BATCH)
        images = [read_image(path) for path in pictures.tested[places]]
        inputs = processor(images, return_tensors="pt")
        answers = {}
        for name, way in ways.items():
            way.processor = lambda *_, inputs=inputs, **__: inputs  # prepared once for both
            answers[name] = way.predict(images, batch_size=BATCH)
            if pictures.judge:
                tables[name].append(pictures.judge(places, answers[name]))
        largest = max(largest, float(np.abs(said["torch"] - said["exported"]).max()))
        pairs = zip(answers["torch"], answers["exported"], strict=True)
        changed += [float(np.mean(decided(one) != decided(other))) for one, other in pairs]
    found: dict[str, Any] = {
        "pictures": len(pictures.tested),
        "split": "test" if pictures.run else None,
        "largest_logit_difference": largest,
        "decisions_changed": float(np.mean(changed)),
    }
    if pictures.run:
        task, result = task_for_results(pictures.run.results), pictures.run.results
        rivals = {
            name: task.run_scores(
                pd.concat(its, ignore_index=True).sort_values("image_id", ignore_index=True), [result]
            )
            for name, its in tables.items()
        }
        metric = rivals["torch"].usual[0]
        (row,) = (row for row in paired_differences(rivals, "torch", [metric]) if row.metric == metric)
        found |= {"metric": metric} | {name: to_json(its.metrics[metric]) for name, its in rivals.items()}
        value, low, high, p_value = row.difference
        found["difference"] = to_json(Interval(value, low, high)) | {
            "p_value": p_value if np.isfinite(p_value) else None
        }
    return found


def decided(prediction: Prediction) -> np.ndarray:
    """What a prediction comes to: the mask (H, W), or the decided label or labels."""
    return np.asarray(prediction.decision if prediction.mask is None else prediction.mask)


def refusal(kind: str, found: dict[str, Any]) -> str:
    """Why an export is not kept, with the figures."""
    words = (
        f"{kind} decides otherwise than the run on {100 * found['decisions_changed']:.2g} % of {found['pictures']} "
        f"pictures (of masks: of their pixels), and {100 * MOST_CHANGED:g} % are allowed; logits differ by up to "
        f"{found['largest_logit_difference']:.2g}"
    )
    if "metric" in found:
        one, other = (found[name]["value"] for name in ("torch", "exported"))
        if None not in (one, other):
            words += f"; {METRIC_NAMES[found['metric']]} is {other:.4f}, that of the run {one:.4f}"
    return f"{words}. Nothing was kept. --force keeps it, and the card says so."
