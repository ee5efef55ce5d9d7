"""Image sizes of a training: one, or smaller ones in the first epochs (progressive resizing)."""

import copy
import re
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from hf_medtl.errors import MedtlError
from hf_medtl.models.image_size import check_image_size, set_image_size, size_arguments
from hf_medtl.models.processor import MAX_SIDE


@dataclass(frozen=True)
class ImageSizes:
    """Height and width in pixels of the images, by epoch.

    Training at smaller sizes is faster, and the model is that of the last size: validation, test and everything that is
    saved have it. Source: Howard and Gugger 2020, Fastai, https://arxiv.org/abs/2002.04688 (progressive resizing).

    Args:
        last: of the model; None for that of the checkpoint.
        stages: size and number of epochs of those before, in this order.
    """

    last: int | None = None
    stages: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, value: Any, epochs: float) -> "ImageSizes":
        """Parse --image_size: pixels, or size:epochs pairs and the last size, such as 128:5,224.

        Args:
            value: of the option.
            epochs: number of training epochs.

        Raises:
            MedtlError: it can't be parsed, sizes do not grow, or no epoch is left for the last one.
        """
        if value is None:
            return cls()
        parts = re.fullmatch(r"((?:\d+:\d+,)*)(\d+)", str(value).replace(" ", ""))
        pairs = [pair.split(":") for pair in parts[1].split(",") if pair] if parts else []
        stages = tuple((int(size), int(number)) for size, number in pairs)
        sizes = [size for size, _ in stages] + ([int(parts[2])] if parts else [])
        if not parts or not 1 <= min(sizes) <= max(sizes) <= MAX_SIDE:
            raise MedtlError(
                f"--image_size must be 1 to {MAX_SIDE} pixels, or sizes with their epochs before the last one, such as "
                f"128:5,224, but is {value!r}."
            )
        if sizes != sorted({*sizes}) or not all(number for _, number in stages):
            raise MedtlError(f"--image_size must grow, each for one epoch or more, but is {value!r}.")
        if stages and sum(number for _, number in stages) >= epochs:
            raise MedtlError(
                f"--image_size {value} leaves no epoch for {sizes[-1]} pixels: training has {epochs:g} epochs. Shorten "
                "it, or increase --num_train_epochs."
            )
        return cls(sizes[-1], stages)

    def at(self, epoch: int) -> int | None:
        """Return the size of an epoch that trains on smaller images; None from the last size on."""
        for size, number in self.stages:
            if epoch < number:
                return size
            epoch -= number
        return None

    def check(self, model: PreTrainedModel) -> None:
        """Raise MedtlError if a classifier does not take the smaller images."""
        for size, _ in self.stages:
            set_image_size(copy.deepcopy(model.config), size)
            check_image_size(model, size, size, **size_arguments(model))
