"""Heatmaps of a saved classifier, with their sanity checks, and the regions that they are compared with."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoModelForImageClassification

from hf_medtl.common.files import adding_files
from hf_medtl.common.text import first_line
from hf_medtl.data.columns import parse_columns
from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.images import read_image, read_mask
from hf_medtl.data.loading import load
from hf_medtl.errors import MedtlError
from hf_medtl.explain.localization import Region
from hf_medtl.explain.report import check_supported, write_report
from hf_medtl.models.build import load_trained
from hf_medtl.models.device import select_device
from hf_medtl.models.untrusted import load_processor
from hf_medtl.predict import Predictor
from hf_medtl.publish.card import write_explanations
from hf_medtl.publish.neutral_files import are_names_public, neutral_table
from hf_medtl.runs.finished import fetch_run
from hf_medtl.runs.lock import RUN_LOCK, lock_folder

logger = logging.getLogger("hf_medtl")


def dataset_masks(loaded: LoadedDataset) -> Region:
    """Return the masks of a dataset as a region, resized to the image if they have another size.

    Raises:
        MedtlError: the dataset has no masks.
    """
    masks = {
        loaded.root / path: [loaded.root / part for part in cell.split("|")]
        for path, cell in zip(loaded.table["path"], loaded.table["mask"], strict=True)
        if cell
    }
    if not masks:
        raise MedtlError(
            f"{loaded.spec.title} in {loaded.root} has no masks. Leave out --masks; for chest radiographs use "
            "--lung_model."
        )

    def mask_for(path: Path, image: Image.Image) -> NDArray[np.bool_]:
        if path not in masks:
            return np.zeros((image.height, image.width), bool)
        return np.asarray(read_mask(masks[path]).resize(image.size, Image.Resampling.NEAREST)) > 0

    return Region(loaded.spec.mask_shows, f"masks of {loaded.spec.title}", mask_for)


def lung_masks(model: str, device: str | torch.device | None = None) -> Region:
    """Return the lungs segmented by a model in chest radiographs, with its postprocessing, as a region.

    Classes whose name contains "lung" are lungs, or all but class 0 if none does.

    Args:
        model: run folder or Hub id.
        device: of the model, see `hf_medtl.models.device.select_device`.

    Raises:
        MedtlError: no such model, or not a segmentation model.
    """
    predictor = Predictor.from_pretrained(model, device=device)
    if not predictor.is_segmentation:
        raise MedtlError(
            f"--lung_model {model} predicts labels. Use a model that segments lungs, such as a run of "
            "recipes/unet_lungs.py."
        )
    names = predictor.labels
    lungs = [i for i, name in enumerate(names) if "lung" in name.lower()] or list(range(1, len(names)))

    def mask_for(path: Path, image: Image.Image) -> NDArray[np.bool_]:
        mask = predictor.predict(image)[0].mask
        assert mask is not None  # the image is readable
        return np.isin(mask, lungs)

    return Region("lungs", f"the model {'/'.join(Path(model).parts[-2:])} at {predictor.revision}", mask_for)


def explain_model(
    model: str,
    out: Path | None = None,
    dataset: str | None = None,
    data_dir: Path | None = None,
    method: str = "gradcam",
    layer: str | None = None,
    split: str = "test",
    number: int = 12,
    sample: int = 12,
    masks: bool = False,
    lung_model: str | None = None,
    seed: int = 0,
    device: str | None = None,
    update_card: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Write heatmap pages of a saved classifier and its sanity checks; return the folder and the report.

    The verdict on the test split of a run folder is saved there, too, in explanations.json and on its card, unless
    `out` is given without `update_card`.

    Args:
        model: Run folder or Hub id.
        out: Folder for the pages; MODEL/explanations by default.
        dataset: Name of a data set; the run's own by default.
        data_dir: Folder with the data; downloaded if None.
        method: See `hf_medtl.explain.report.write_report`.
        layer: Name of a module; chosen automatically if None.
        split: Split of the run.
        number: Maximum number of images on a page.
        sample: Maximum number of images for the verdict on each label.
        masks: Fail if the data set has no masks of its own; where it has, the energy inside them is measured anyway.
        lung_model: Measure it inside the lungs that this model segments.
        seed: Seed of the sample and of the tests.
        device: See `hf_medtl.models.device.select_device`.
        update_card: Save the verdict in the run folder with `out`, too.

    Raises:
        MedtlError: Both regions are given, there is no folder to write to or another process writes to it, the model
            is no classifier of hf_medtl, or the split is empty.
    """
    if masks and lung_model:
        raise MedtlError("Heatmaps are compared with one region. Give --masks or --lung_model, not both.")
    is_folder = Path(model).is_dir()
    if out is None and not is_folder:
        raise MedtlError("Give --out, the folder for the pages: only a run folder has a default.")
    update_card = update_card or out is None
    out = out or Path(model) / "explanations"
    chosen = select_device(device)
    try:
        network: Any = load_trained(AutoModelForImageClassification, model)
        processor = load_processor(model)
        finished = fetch_run(model)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise MedtlError(
            f"{model} can't be loaded as a classifier ({first_line(error)}). Give the folder of "
            "a finished run, or the id of a published one."
        ) from error
    check_supported(network)
    network.to(chosen)
    if not (finished.path / "splits.csv").is_file():
        raise MedtlError(f"{model} has no splits.csv, so its training images are unknown. Give a run of hf_medtl.")
    name = dataset or finished.recipe.get("dataset", "brain-tumor-mri")  # recipe.yaml leaves out defaults
    positive = finished.results.get("positive_label")
    columns = parse_columns(finished.recipe.get("columns"))
    loaded = load(name, data_dir, splits=finished.path / "splits.csv", positive=positive, columns=columns)
    rows = loaded.rows(split)
    if rows.empty:
        raise MedtlError(f"The split {split!r} has no images. Give --split test, validation or train.")
    region: Region | None
    if lung_model:
        region = lung_masks(lung_model, chosen)
    else:  # masks say more than any other check, so they are used wherever there are some
        region = dataset_masks(loaded) if masks or loaded.table["mask"].any() else None
    with lock_folder(out, RUN_LOCK, "writes explanations", "--out"), adding_files(out) as staging:
        report = write_report(
            network,
            processor,
            [loaded.root / path for path in rows["path"]],
            list(rows["label"]),
            read_image,
            staging,
            method,
            layer,
            number,
            sample,
            seed=seed,
            region=region,
            groups=list(rows["group"]),
            image_names=None if are_names_public(finished) else list(neutral_table(finished, rows)["image_id"]),
        )
    if is_folder and split == "test" and (Path(model) / "README.md").is_file():
        if update_card:
            write_explanations(Path(model), report, split)
        else:
            logger.info("%s was not changed. --update_card saves the verdict there and on its card.", model)
    return out, report
