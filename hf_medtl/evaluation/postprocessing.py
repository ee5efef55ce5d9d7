"""Postprocessing of predicted masks; chosen on validation data and saved in config.json."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, generate_binary_structure, label

from hf_medtl.errors import MedtlError

Mask = NDArray[Any]
# Pixels that touch at a corner are in one component; holes are the dual, 4-connected.
EIGHT_CONNECTED = generate_binary_structure(2, 2)


def largest_components(mask: Mask, number: int) -> Mask:
    """Keep the `number` largest 8-connected components of each class of a mask (H, W), turn the others into 0.

    Of components of equal size the one that begins further up is kept.
    """
    kept = np.zeros_like(mask)
    for value in np.unique(mask[mask != 0]):
        components, count = label(mask == value, structure=EIGHT_CONNECTED)
        sizes = np.bincount(components.ravel())[1:]
        # Stable, so that the same mask gives the same pixels wherever it is computed.
        largest = 1 + np.argsort(-sizes, kind="stable")[:number]
        kept[np.isin(components, largest) if count > number else components > 0] = value
    return kept


def fill_holes(mask: Mask, fill: bool = True) -> Mask:
    """Fill background (0) of a mask (H, W) that one class encloses with that class; other classes inside it stay.

    A gap at the image's edge, or one that leads outside between pixels that touch along a side, is no hole. With
    `fill` False the mask is returned as it is.
    """
    if not fill:
        return mask
    filled = mask.copy()
    for value in np.unique(mask[mask != 0]):
        filled[binary_fill_holes(mask == value) & (filled == 0)] = value
    return filled


# In the order in which they are applied: a hole of a component that is removed need not be filled.
STEPS: dict[str, Callable[[Mask, Any], Mask]] = {"largest_components": largest_components, "fill_holes": fill_holes}


def check_postprocessing(steps: Mapping[str, Any]) -> None:
    """Check the names and values of postprocessing steps.

    Raises:
        MedtlError: an unknown step or an invalid value.
    """
    for name, value in steps.items():
        if name not in STEPS:
            raise MedtlError(f"Unknown postprocessing step {name!r}. Known steps: {', '.join(STEPS)}.")
        if name == "fill_holes" and not isinstance(value, bool):
            raise MedtlError(f"fill_holes is true or false, found {value!r}.")
        if name == "largest_components" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise MedtlError(f"largest_components is a whole number of at least 1, found {value!r}.")


def postprocess(mask: Mask, steps: Mapping[str, Any]) -> Mask:
    """Apply postprocessing steps to a mask, each class by itself, in the order of STEPS.

    Args:
        mask: (H, W) bool, or uint8 class indices where 0 is the background; not changed. The result has its dtype.
        steps: as in config.json, such as {"largest_components": 2, "fill_holes": true}.

    Raises:
        MedtlError: as `check_postprocessing`.
        ValueError: a mask that is not (H, W).
    """
    check_postprocessing(steps)
    if mask.ndim != 2:
        raise ValueError(f"expected a mask of shape (H, W), found {mask.shape}")
    for name, step in STEPS.items():
        if name in steps:
            mask = step(mask, steps[name])
    return mask
