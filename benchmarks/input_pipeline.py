"""Images per second until a normalised batch is on the device: prepared images against decoding in each epoch.

    python benchmarks/input_pipeline.py [--images FOLDER] [--workers N] [--number 20000]

Ours is what training runs: `prepare` once, then `Pictures`, the Trainer's own DataLoader and `_prepare_inputs`. The
usual way is torchvision's ImageFolder with Pillow, Resize, transforms of the same kind, strength and probability as
ours, ToTensor and Normalize in as many workers and batches of the same size. The two take turns; medians are reported,
and the median of the ratios of neighbours. Workers are up before the clock starts, and files are in the page cache.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_medtl.common.system import cores
from hf_medtl.data import phantoms
from hf_medtl.data.augmentation import get_augmentation
from hf_medtl.data.cache import prepare_images
from hf_medtl.data.prepared import PreparedImages
from hf_medtl.models.preprocessing import preprocessing_key, to_uint8

NATIVE, SIZE = (1500, 1200), (224, 224)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PROCESSOR = ViTImageProcessor(size={"height": SIZE[0], "width": SIZE[1]}, image_mean=MEAN, image_std=STD)


def affine(degrees: float, shift: float, zoom: float) -> Any:
    moved = T.RandomAffine(degrees, (shift, shift), (1 - zoom, 1 + zoom), interpolation=T.InterpolationMode.BILINEAR)
    return T.RandomApply([moved], p=0.9)


USUAL = {
    "light": ([affine(10, 0.05, 0.1), T.RandomApply([T.ColorJitter(0.15, 0.15)], p=0.8)], []),
    "chest": (
        [
            affine(15, 0.1, 0.2),
            T.RandomApply([T.ColorJitter(0.2, 0.2)], p=0.8),
            T.RandomApply([T.GaussianBlur(5, (0.3, 1.0))], p=0.2),
        ],
        [T.RandomErasing(p=0.3, scale=(0.0025, 0.05))],
    ),
}


def write_jpegs(folder: Path, size: tuple[int, int], sources: list[Path], number: int) -> list[Path]:
    """`number` grey JPEGs of `size` (width, height) in two folders of labels, from the images given."""
    for i in range(number):
        path = folder / f"label{i % 2}" / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(sources[i % len(sources)]) as image:
            image.convert("L").resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
    return sorted(folder.rglob("*.jpg"))


def build(paths: list[Path]) -> Any:
    """Prepare images as training does."""
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    return prepare_images(paths, digests, lambda images: to_uint8(PROCESSOR, images), preprocessing_key(PROCESSOR))


def measured_build(paths: list[Path], cache: Path) -> dict[str, float]:
    """Seconds and peak memory (MB) of building the cache in a fresh process, and what it held before."""
    done = subprocess.run(
        [sys.executable, __file__, "--build"],
        input=json.dumps([str(path) for path in paths]),
        env=os.environ | {"HF_MEDTL_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def peak_mb() -> float:
    """Highest resident set of this process, mapped files included. getrusage would begin with the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3


def built_here() -> None:
    """What `measured_build` starts."""
    paths = [Path(path) for path in json.load(sys.stdin)]
    before, began = peak_mb(), time.perf_counter()
    build(paths)
    print(json.dumps({"seconds": time.perf_counter() - began, "peak": peak_mb(), "before": before}))


def ours(paths: list[Path], name: str, arguments: argparse.Namespace, epochs: int) -> Callable[[], Iterator[Any]]:
    """Batches of the Trainer, with each image `epochs` times in an epoch, so that it lasts long enough to measure."""
    from hf_medtl import Recipe  # here, so that they do not weigh on the process whose memory is measured
    from hf_medtl.training.trainer import MedicalTrainer

    recipe = Recipe(
        output_dir=str(arguments.folder / "run"),
        per_device_train_batch_size=arguments.batch_size,
        dataloader_num_workers=arguments.workers,
        dataloader_persistent_workers=arguments.workers > 0,
        use_cpu=not torch.cuda.is_available(),
    )
    data = PreparedImages(
        build(paths), [*range(len(paths))] * epochs, [0] * len(paths) * epochs, get_augmentation(name)
    )
    layers = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = ViTForImageClassification(ViTConfig(**layers))
    trainer = MedicalTrainer(recipe, model, PROCESSOR, data, data, torch.nn.CrossEntropyLoss(), dict)
    loader = trainer.get_train_dataloader()
    return lambda: (trainer._prepare_inputs(batch)["pixel_values"] for batch in loader)


def usual(folder: Path, name: str, arguments: argparse.Namespace) -> Callable[[], Iterator[Any]]:
    """Batches of ImageFolder with transforms as everybody writes them."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before, after = USUAL[name]
    data = ImageFolder(str(folder), T.Compose([T.Resize(SIZE), *before, T.ToTensor(), T.Normalize(MEAN, STD), *after]))
    loader = DataLoader(
        data,
        batch_size=arguments.batch_size,
        shuffle=True,
        num_workers=arguments.workers,
        persistent_workers=arguments.workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
    return lambda: (pixels.to(device, non_blocking=True) for pixels, _ in loader)


def rate(batches: Callable[[], Iterator[Any]]) -> float:
    """Images per second of one epoch."""
    began, number = time.perf_counter(), 0
    for pixels in batches():
        assert pixels.dtype == torch.float32 and pixels.shape[1:] == (3, *SIZE)
        number += len(pixels)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return number / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder with chest X-rays to make the JPEGs from; else phantoms")
    parser.add_argument("--files", type=int, default=256, help="JPEGs of each size")
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10, help="of ours, timed as one")
    parser.add_argument("--number", type=int, default=20000, help="images for the measurement of memory; 0 = none")
    parser.add_argument("--augmentations", nargs="+", default=list(USUAL), choices=USUAL)
    parser.add_argument("--build", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        return built_here()
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = Path(folder)
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    folder, cache = arguments.folder, arguments.folder / "cache"
    os.environ["HF_MEDTL_CACHE"] = str(cache)
    source = arguments.images or phantoms.write_phantoms(folder / "phantoms", "chest", patients=64, images=2)
    sources = sorted(path for path in source.rglob("*") if path.suffix.lower() in {".png", ".jpg", ".jpeg"})
    sources = [path for path in sources if path.parent.name != "masks"][: arguments.files]

    print(f"{platform.processor() or platform.machine()}, {cores()} cores, ", end="")
    print(torch.cuda.get_device_name() if torch.cuda.is_available() else "no accelerator", end="; Python ")
    packages = ("torch", "torchvision", "pillow", "albumentations", "opencv-python-headless", "pyarrow")
    print(platform.python_version(), *(f"{name} {version(name)}" for name in packages), sep=", ")
    print(f"{arguments.workers} workers, batches of {arguments.batch_size}, {arguments.files} files, ", end="")
    print(f"{arguments.repeats} repetitions, images from {'--images' if arguments.images else 'phantoms'}\n")
    print("| files | augmentation | usual, images/s | ours, images/s | ratio (range) | cache built once, s |")
    print("|---|---|---:|---:|---:|---:|")
    builds = {}
    for size in (NATIVE, SIZE):
        subfolder = folder / str(size[0])
        paths = write_jpegs(subfolder, size, sources, arguments.files)
        builds[size] = measured_build(paths, cache)
        for name in arguments.augmentations:
            them, us = usual(subfolder, name, arguments), ours(paths, name, arguments, arguments.epochs)
            for warm_up in (them, us):
                rate(warm_up)
            pairs = [(rate(them), rate(us)) for _ in range(arguments.repeats)]
            ratios = [b / a for a, b in pairs]
            a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
            print(
                f"| {size[0]} × {size[1]} JPEG | {name} | {a:.0f} | {b:.0f} "
                f"| {statistics.median(ratios):.1f} ({min(ratios):.1f}–{max(ratios):.1f}) "
                f"| {builds[size]['seconds']:.2f} |",
                flush=True,
            )
    print(f"\nThe first epoch pays for the cache: {arguments.files} files were prepared at", end=" ")
    print(
        " and ".join(f"{arguments.files / b['seconds']:.0f}/s ({s[0]} × {s[1]})" for s, b in builds.items()), end=".\n"
    )
    native = sorted((folder / str(NATIVE[0])).rglob("*.jpg"))
    for number, files in ((arguments.files, native), (arguments.number, paths)):
        if number:
            # Paths are repeated, and each is read, hashed, decoded and stored anew.
            row = measured_build((files * (number // len(files) + 1))[:number], folder / f"memory{number}")
            print(
                f"Building {number} images: {row['seconds']:.1f} s, peak memory {row['peak']:.0f} MB, of which "
                f"{row['before']:.0f} MB before it began.",
                flush=True,
            )


if __name__ == "__main__":
    main()
