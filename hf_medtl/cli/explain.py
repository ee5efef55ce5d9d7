"""Regions that maps are compared with: the masks of a data set, or the lungs as a segmentation model sees them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hf_medtl.data.images import read_mask
from hf_medtl.data.loading import LoadedDataset
from hf_medtl.errors import MedtlError
from hf_medtl.explain.localization import Region
from hf_medtl.predict import Predictor


def dataset_masks(loaded: LoadedDataset) -> Region:
    """The masks of a data set's own, stretched to the picture where they have another size.

    Raises:
        MedtlError: it has none.
    """
    masks = {
        loaded.root / path: [loaded.root / part for part in cell.split("|")]
        for path, cell in zip(loaded.table["path"], loaded.table["mask"], strict=True)
        if cell
    }
    if not masks:
        raise MedtlError(
            f"{loaded.spec.title} in {loaded.root} has no masks. Leave out --masks; for chest radiographs --lung_model "
            "finds the lungs."
        )

    def of(path: Path, picture: Image.Image) -> NDArray[np.bool_]:
        if path not in masks:
            return np.zeros((picture.height, picture.width), bool)
        return np.asarray(read_mask(masks[path]).resize(picture.size, Image.Resampling.NEAREST)) > 0

    return Region(loaded.spec.mask_shows, f"masks of {loaded.spec.title}", of)


def lung_masks(model: str) -> Region:
    """The lungs in chest radiographs, by a segmentation model, after its postprocessing.

    Classes whose name contains "lung" are lungs, or all but class 0 where none does.

    Args:
        model: run folder or Hub id.

    Raises:
        MedtlError: no such model, or none that gives masks.
    """
    predictor = Predictor.from_pretrained(model)
    if not predictor.of_masks:
        raise MedtlError(
            f"--lung_model {model} gives labels, and a model that outlines lungs is needed, such as a run of "
            "recipes/unet_lungs.py."
        )
    names = predictor.labels
    lungs = [i for i, name in enumerate(names) if "lung" in name.lower()] or list(range(1, len(names)))

    def of(path: Path, picture: Image.Image) -> NDArray[np.bool_]:
        mask = predictor.predict(picture)[0].mask
        assert mask is not None  # a picture that was read has one
        return np.isin(mask, lungs)

    return Region("lungs", f"the model {'/'.join(Path(model).parts[-2:])} at {predictor.revision}", of)
