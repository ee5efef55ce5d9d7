"""How long one image takes, and how many go through in a second, by what computes them.

    python benchmarks/export.py runs/vit runs/lite0

Each argument is a finished run. torch as it is, torch.compile, ONNX Runtime and OpenVINO answer the same random pixels
in turn, in one process on the CPU with the same number of threads: a machine that gets busy then costs all of them.
Printed are the median milliseconds of one image, and the images a second of a batch, from the median, too. Logits
that differ from torch's by more than 1e-3 end the program.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from hf_medtl import Predictor
from hf_medtl.export.export import FORMATS
from hf_medtl.export.onnx import Logits, write_onnx
from hf_medtl.models.benchmark import example_input


def ways(run: Path, place: Path) -> tuple[dict[str, Any], tuple[int, int]]:
    """Name -> pixel_values -> logits, and height and width of the images."""
    predictor = Predictor.from_pretrained(run, device="cpu")
    height, width = example_input(predictor.processor)["pixel_values"].shape[-2:]
    model, threads = Logits(predictor.model).eval(), torch.get_num_threads()
    write_onnx(predictor.model, height, width, place / "model.onnx")
    openvino = FORMATS["openvino"].write(place / "model.onnx", place)
    compiled = torch.compile(model)

    def of_torch(module: Any) -> Any:
        @torch.inference_mode()
        def ask(pixels: np.ndarray) -> np.ndarray:
            return module(torch.from_numpy(pixels)).numpy()

        return ask

    return {
        "torch": of_torch(model),
        "torch.compile": of_torch(compiled),
        "ONNX Runtime": FORMATS["onnx"].load(place / "model.onnx", threads),
        "OpenVINO": FORMATS["openvino"].load(openvino, threads),
    }, (height, width)


def median_seconds(asks: dict[str, Any], pixels: np.ndarray, repeats: int) -> dict[str, float]:
    """Of each way, after a warm-up of two rounds, which compile."""
    seconds: dict[str, list[float]] = {name: [] for name in asks}
    wanted = asks["torch"](pixels)
    for number in range(2 + repeats):
        for name, ask in asks.items():
            began = time.perf_counter()
            logits = ask(pixels)
            seconds[name].append(time.perf_counter() - began)
            if number == 0 and np.abs(logits - wanted).max() > 1e-3:
                raise SystemExit(f"{name} answers otherwise than torch, by up to {np.abs(logits - wanted).max():.2g}.")
    return {name: statistics.median(found[2:]) for name, found in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--batch", type=int, default=16, help="images at a time, for images a second")
    parser.add_argument("--repeats", type=int, default=20, help="of one image; of batches a quarter")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(f"{torch.get_num_threads()} thread(s) on {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
          f"torch {torch.__version__}\n")  # fmt: skip
    print(f"| run | by | one image, ms | images a second in batches of {arguments.batch} |")
    print("|---|---|---|---|")
    for run in arguments.runs:
        with tempfile.TemporaryDirectory() as temporary:
            asks, size = ways(run, Path(temporary))
            draw = np.random.default_rng(0).standard_normal
            single, batch = (draw((number, 3, *size), np.float32) for number in (1, arguments.batch))
            one = median_seconds(asks, single, arguments.repeats)
            many = median_seconds(asks, batch, max(3, arguments.repeats // 4))
        for name in asks:
            rate = arguments.batch / many[name]
            print(f"| {run.parent.name}/{run.name} | {name} | {1000 * one[name]:.1f} | {rate:.1f} |", flush=True)


if __name__ == "__main__":
    main()
