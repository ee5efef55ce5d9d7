"""How long one image takes: a prediction with its Grad-CAM, and what others would do for the same.

    python benchmarks/latency.py runs/vit runs/resnet50 --data_dir FOLDER_OF_IMAGES

Each argument is a finished run of a classifier. Three ways are timed in turn on the same images, one at a time:
`Predictor.predict(image, explain="gradcam")`, stock `pipeline()` and then a pass of the package grad-cam with the
layer given, and `Predictor.predict(image)` without a map. Printed are the 50th and 95th percentile in milliseconds,
and the median over images of the ratio of the first to the second way.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from transformers import pipeline
from transformers.utils import logging

from hf_medtl import Predictor
from hf_medtl.data.inputs import image_files
from hf_medtl.explain.layers import find_layer


class Logits(torch.nn.Module):
    """What grad-cam's documentation has for models of transformers."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixels).logits


def stock(folder: Path, image: Path) -> Callable[[Path], Any]:
    """pipeline(), then grad-cam on the model that the pipeline has."""
    classify = pipeline("image-classification", str(folder), device="cpu", trust_remote_code=True)
    model, processor = classify.model, classify.image_processor
    layer = find_layer(model, processor(Image.open(image).convert("RGB"), return_tensors="pt")["pixel_values"])

    def ask(path: Path) -> Any:
        best = classify(str(path))[0]["label"]
        image = Image.open(path).convert("RGB")
        pixels = processor(image, return_tensors="pt")["pixel_values"]
        with GradCAM(Logits(model), [layer.module], layer.reshape) as cam:
            seen = cam(pixels, [ClassifierOutputTarget(model.config.label2id[best])])[0]
        return best, np.asarray(Image.fromarray(seen).resize(image.size, Image.Resampling.BILINEAR))

    return ask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--data_dir", type=Path, required=True, help="folder with images")
    parser.add_argument("--images", type=int, default=40, help="how many, after 5 to warm up")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    files = image_files(arguments.data_dir)
    files = [files[i] for i in np.random.default_rng(0).permutation(len(files))[: arguments.images + 5]]
    print(f"{torch.get_num_threads()} threads on {os.cpu_count()} cores, torch {torch.__version__}, "
          f"{len(files) - 5} images, one at a time; milliseconds\n")  # fmt: skip
    print("| run | with Grad-CAM p50 | p95 | pipeline() and grad-cam p50 | p95 | without a map p50 | p95 | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for run in arguments.runs:
        predictor = Predictor.from_pretrained(run, device="cpu")
        ways = (
            lambda path, model=predictor: model.predict(path, explain="gradcam")[0],
            stock(run, files[0]),
            lambda path, model=predictor: model.predict(path)[0],
        )
        seconds = np.empty((len(files), len(ways)))
        for i, path in enumerate(files):
            answers = []
            for j in np.roll(np.arange(len(ways)), i):  # none is always first
                began = time.perf_counter()
                answers.append((j, ways[j](path)))
                seconds[i, j] = time.perf_counter() - began
            by_way = dict(answers)
            assert by_way[0].label == by_way[1][0] == by_way[2].label, path
        kept = 1000 * seconds[5:]
        p50, p95 = np.percentile(kept, [50, 95], axis=0)
        cells = [f"{value:.0f}" for pair in zip(p50, p95, strict=True) for value in pair]
        print(f"| {run} | {' | '.join(cells)} | {np.median(kept[:, 0] / kept[:, 1]):.2f} |", flush=True)


if __name__ == "__main__":
    main()
