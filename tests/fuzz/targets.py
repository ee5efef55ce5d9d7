"""Functions that users' files reach, each with valid files and with what a right result looks like."""

import io
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from hf_medtl.common.run_folder import RunFolder
from hf_medtl.data import loading, read_image
from hf_medtl.data.inputs import read_source
from hf_medtl.data.splits import read_splits
from hf_medtl.data.table_files import read_table_file
from hf_medtl.publish import handler
from hf_medtl.publish.check import check_card, check_run_files
from hf_medtl.space import uploads
from tests.support.fuzz_seeds import (
    TABLE,
    array_files,
    image_files,
    medical_files,
    option_files,
    png_bomb,
    request_bodies,
    table_files,
    zip_files,
)
from tests.support.fuzz_worker import Target

LIMIT = 100_000_000  # pixels


def wrong_image(image: object) -> str:
    """Return what is wrong with an image that was read."""
    if not isinstance(image, Image.Image) or image.mode != "RGB" or image.info or min(image.size) < 1:
        return f"not an RGB image without metadata: {image}"
    return "" if image.width * image.height <= LIMIT else f"{image.size} pixels"


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def read_bytes(folder: Path, name: str, content: bytes) -> str:
    return wrong_image(read_image(content)) or wrong_image(read_image(content, frame=len(content) % 2))


def read_as_predictor(folder: Path, name: str, content: bytes) -> str:
    sources = [write(folder, name, content), content]
    try:
        opened = Image.open(io.BytesIO(content))
        sources.append(opened)
    except Exception:
        pass
    for source in sources:
        _, image, error = read_source((0, source))
        if image is not None and (error or (problem := wrong_image(image))):
            return error or problem
        if image is None and (not error or not "".join(error.split()).isprintable() or "\n" in error):
            return f"an error that is no line: {error!r}"
    return ""


def read_request(folder: Path, name: str, content: bytes) -> str:
    kinds = {"form": "multipart/form-data; boundary=x", "object.json": "application/json"}
    image = handler.read(handler.parse(kinds.get(name, "image/png"), content))
    image.info = {}  # the answer has nothing of it
    return wrong_image(image)


def read_upload(folder: Path, name: str, content: bytes) -> str:
    upload = uploads.parse_upload(name, content)
    problem = wrong_image(upload.image())
    if upload.windowing is not None:
        problem = problem or wrong_image(upload.image(window=(0.0, 100.0), frame=upload.frames - 1))
    return problem


def read_batch(folder: Path, name: str, content: bytes) -> str:
    for item in uploads.load_batch(write(folder, "batch/" + name, content), name):
        if isinstance(item, uploads.RejectedFile) and not (item.reason.strip() and item.reason.isprintable()):
            return f"the reason {item.reason!r}"
        if not item.name.isprintable():
            return f"the name {item.name!r}"
    return ""


def read_table(folder: Path, name: str, content: bytes) -> str:
    table = read_table_file(write(folder, name, content))
    cells = [*table.columns, *table.to_numpy().ravel()]
    return "" if all(isinstance(cell, str) for cell in cells) and len(table) else "cells that are no text"


def draw_images(folder: Path) -> None:
    """Write the images of TABLE."""
    for i, name in enumerate(TABLE["file_name"]):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        path = write(folder, f"images/{name}", b"")
        Image.fromarray(pixels).save(path)


def wrong_survey(survey: loading.Survey) -> str:
    """Return what is wrong with a data set that was read."""
    table = survey.table
    if not set(table["path"]) <= {*TABLE["file_name"]}:
        return f"images {sorted(set(table['path']))}"
    if not table["path"].is_unique or {"nan", "null", ""} & {label.lower() for label in survey.labels}:
        return f"labels {survey.labels} of {table['path'].tolist()}"
    for patient, group in table.groupby("patient"):
        if str(patient).lower() in {"nan", "none", "null", "unknown", "-"} and len(group) > 1:
            return f"a patient {patient!r}"
    return ""


def survey_table(folder: Path, name: str, content: bytes) -> str:
    path = write(folder / "images", name, content)
    try:
        return wrong_survey(loading.survey("table", path))
    finally:
        path.unlink()


def survey_folder(folder: Path, name: str, content: bytes) -> str:
    if name not in ("comma.csv", "indicators.csv", "lists.csv"):
        name = f"metadata{Path(name).suffix}"
    path = write(folder / "images", "metadata.csv" if name.endswith(".csv") else name, content)
    try:
        return wrong_survey(loading.survey("imagefolder", folder / "images"))
    finally:
        path.unlink()


def load_damaged_images(folder: Path, name: str, content: bytes) -> str:
    """Read a folder of a few images and a mutated one."""
    root = folder / "labels"
    if not root.exists():
        for i in range(24):
            pixels = np.random.default_rng(i).integers(0, 256, (16, 16), dtype=np.uint8)
            path = write(root, f"{'ab'[i % 2]}/{i}.png", b"")
            Image.fromarray(pixels).save(path)
    path = write(root, f"a/x{name}", content)
    try:
        images = loading.survey("imagefolder", root).table["path"]
        return "" if len(images) in (24, 25) and {f"a/{i}.png" for i in range(0, 24, 2)} < {*images} else str([*images])
    finally:
        path.unlink()


def unpack_arrays(folder: Path, name: str, content: bytes) -> str:
    path = write(folder, "breastmnist.npz", content)
    survey = loading.survey("medmnist", path)
    return "" if len(survey.table) and all(survey.labels) else "no images or labels"


def read_options(folder: Path, name: str, content: bytes) -> str:
    from hf_medtl import Recipe

    path = write(folder, name, content)
    recipe = Recipe.from_cli(argv=["--config", str(path), "--use_cpu"])
    return "" if recipe.to_yaml() and recipe.to_dict() else "no options"


def read_given_splits(folder: Path, name: str, content: bytes) -> str:
    table = pd.DataFrame({"image_id": TABLE["file_name"], "sha256": [f"{i:064x}" for i in range(12)]})
    split = read_splits(table.assign(group=TABLE["patient"]), write(folder, "splits.csv", content))
    return "" if {*split} <= {"train", "validation", "test", ""} else f"splits {sorted({*split})}"


def splits_files() -> dict[str, bytes]:
    table = pd.DataFrame({"image_id": TABLE["file_name"], "path": TABLE["file_name"], "label": TABLE["label"]})
    table = table.assign(group=TABLE["patient"], split=TABLE["split"], sha256=[f"{i:064x}" for i in range(12)])
    return {"splits.csv": table.to_csv(index=False).encode()}


def archives() -> dict[str, bytes]:
    some = {name: image_files()[name] for name in ("rgb.png", "baseline.jpg", "deep.tif")}
    return {"images.zip": zip_files(some | {"a/../../x.png": some["rgb.png"]})}


RUN_FILES = (
    *(
        "results.json",
        "config.json",
        "recipe.yaml",
        "splits.csv",
        "predictions.csv",
        "README.md",
        "preprocessor_config.json",
    ),
    "checkpoint-1/trainer_state.json",
)


def run_files(run: Path) -> dict[str, bytes]:
    """Return name -> content of the files of a finished run that say something."""
    return {name: (run / name).read_bytes() for name in RUN_FILES if (run / name).is_file()}


def damage(folder: Path, seeds: Mapping[str, bytes], name: str, content: bytes) -> Path:
    """Return a copy of a run in which one file is replaced."""
    for other, original in seeds.items():
        write(folder, f"damaged/{other}", original)
    return write(folder, f"damaged/{name}", content).parents[name.count("/")]


def run_targets(run: Path) -> list[Target]:
    """Return the targets that read the files of a finished run."""
    seeds = run_files(run)
    tables = ("results.json", "recipe.yaml", "splits.csv", "predictions.csv")

    def copy_run(folder: Path) -> None:
        for name in ("damaged", "whole"):
            shutil.copytree(run, folder / name, ignore=shutil.ignore_patterns("checksums.json"))

    def read_run(folder: Path, name: str, content: bytes) -> str:
        copy = RunFolder(damage(folder, seeds, name, content))
        if not (isinstance(copy.results, dict) and isinstance(copy.config, dict) and isinstance(copy.recipe, dict)):
            return "not a dict"
        assert copy.splits is not None
        folds, task = copy.folds, copy.task
        log, _ = copy.history()
        right = isinstance(folds, list) and isinstance(task, str) and isinstance(log, list)
        return "" if right and len(copy.predictions.columns) else "another type"

    def compare(folder: Path, name: str, content: bytes) -> str:
        from hf_medtl.runs.compare import compare_runs

        comparison = compare_runs([damage(folder, seeds, name, content), folder / "whole"])
        return "" if len(comparison.metrics) and comparison.facts and comparison.parts is not None else "no metrics"

    def report(folder: Path, name: str, content: bytes) -> str:
        from hf_medtl.report import write_report

        page = folder / "report.html"
        write_report([damage(folder, seeds, name, content)], page)
        text = page.read_text("utf-8")
        return next((x for x in ("<script>alert(1)", '"><img src=//example.com', "\x1b") if x in text), "")

    def check(folder: Path, name: str, content: bytes) -> str:
        copy = damage(folder, seeds, name, content)
        check_run_files(copy)
        return "" if check_card(copy).data.license else "no licence"

    def load_model(folder: Path, name: str, content: bytes) -> str:
        from hf_medtl import Predictor

        predictor = Predictor.from_pretrained(damage(folder, seeds, name, content), device="cpu")
        prediction = predictor.predict(Image.fromarray(np.zeros((40, 40, 3), np.uint8)))[0]
        return "" if prediction.error or prediction.label in predictor.labels else "no label"

    def some(*names: str) -> dict[str, bytes]:
        return {name: seeds[name] for name in names}

    cards = {"README.md": seeds["README.md"]}
    return [
        Target("run folder", seeds, read_run, text=True, prepare=copy_run),
        Target("compare", some(*tables), compare, text=True, prepare=copy_run),
        Target("report", some(*tables), report, text=True, prepare=copy_run),
        Target(
            "card check",
            some("results.json", "config.json", "predictions.csv") | cards,
            check,
            text=True,
            prepare=copy_run,
        ),
        Target("predictor", some("config.json", "preprocessor_config.json"), load_model, text=True, prepare=copy_run),
    ]


@cache
def targets() -> list[Target]:
    """Return the targets that need no run."""
    images = image_files() | medical_files() | {"bomb.png": png_bomb(12_000)}
    bodies: Mapping[str, bytes] = request_bodies() | images
    refused: tuple[type[Exception], ...] = (ValueError,)
    return [
        Target("read_image", images, read_bytes),
        Target("reader of the predictor", images, read_as_predictor),
        Target("handler", bodies, read_request, refused),
        Target("upload", images, read_upload),
        Target("batch", archives(), read_batch),
        Target("table file", table_files(), read_table, text=True),
        Target("survey of a table", table_files(), survey_table, text=True, prepare=draw_images),
        Target("survey of metadata", table_files(), survey_folder, text=True, prepare=draw_images),
        Target("survey of images", image_files() | medical_files(), load_damaged_images),
        Target("medmnist", array_files(), unpack_arrays),
        Target("recipe", option_files(), read_options, text=True),
        Target("splits", splits_files(), read_given_splits, text=True),
    ]
