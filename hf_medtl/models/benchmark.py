"""Model cost: multiply-accumulate operations, and latency for one image."""

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
    """Median and quartiles of repeated measurements of one image, in milliseconds."""

    median: float
    lower: float
    upper: float


def example_input(processor: Any) -> dict[str, torch.Tensor]:
    """Return model inputs for one grey image, at the size that the model's own image processor produces."""
    return dict(processor(Image.fromarray(np.full((512, 512, 3), 128, np.uint8)), return_tensors="pt"))


def count_macs(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> int:
    """Count multiply-accumulate operations: half the FLOPs that torch counts.

    Matrix products, convolutions and attention count; everything else (normalisation, activations) does not.
    """
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(**inputs)
    return counter.get_total_flops() // 2


@torch.inference_mode()
def measure_latencies(
    models: Sequence[PreTrainedModel], inputs: Sequence[dict[str, torch.Tensor]], repeats: int = 20
) -> list[Latency]:
    """Measure the latency of each model on its current device, alternating between the models after a warm-up.

    Alternating spreads a slow-down of the machine over all models; otherwise only the last one would be penalised.

    Args:
        models: models in evaluation mode.
        inputs: inputs of each model.
        repeats: measurements per model; 2 or more.
    """
    timings: list[list[float]] = [[] for _ in models]
    for repeat in range(WARM_UP + repeats):
        for model, model_inputs, milliseconds in zip(models, inputs, timings, strict=True):
            _synchronize()
            start = time.perf_counter()
            model(**model_inputs)
            _synchronize()
            if repeat >= WARM_UP:
                milliseconds.append(1000 * (time.perf_counter() - start))
    quartiles = [statistics.quantiles(milliseconds, n=4, method="inclusive") for milliseconds in timings]
    return [Latency(median, lower, upper) for lower, median, upper in quartiles]


def _synchronize() -> None:
    """Wait until the accelerator has finished all queued work."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
