"""What a model costs: parameters, multiplications, and time for one picture."""

import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

WARM_UP = 3


class Latency(NamedTuple):
    """Milliseconds for one picture: the median of several, and their quartiles."""

    median: float
    lower: float
    upper: float


def one_picture(processor: Any) -> dict[str, torch.Tensor]:
    """A model's inputs of one grey picture, at the size that its own image processor gives."""
    return dict(processor(Image.fromarray(np.full((512, 512, 3), 128, np.uint8)), return_tensors="pt"))


def macs(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> int:
    """Multiply-accumulate operations of one picture: half the FLOPs that torch counts.

    Matrix products, convolutions and attention count, everything else (normalisation, activations) does not.
    """
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(**inputs)
    return counter.get_total_flops() // 2


@torch.inference_mode()
def latencies(
    models: Sequence[PreTrainedModel], inputs: Sequence[dict[str, torch.Tensor]], repeats: int = 20
) -> list[Latency]:
    """Time of each model for its inputs, on the device it is on, the models in turn after a warm-up.

    In turn, because a machine that slows down or gets busy would otherwise cost the last model, not all of them.

    Args:
        models: in evaluation mode.
        inputs: of each.
        repeats: measurements of each; 2 or more.
    """
    seconds: list[list[float]] = [[] for _ in models]
    for number in range(WARM_UP + repeats):
        for model, its, found in zip(models, inputs, seconds, strict=True):
            _wait()
            start = time.perf_counter()
            model(**its)
            _wait()
            if number >= WARM_UP:
                found.append(1000 * (time.perf_counter() - start))
    each = [statistics.quantiles(found, n=4, method="inclusive") for found in seconds]
    return [Latency(median, lower, upper) for lower, median, upper in each]


def _wait() -> None:
    """Until the accelerator has done what it was told."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
