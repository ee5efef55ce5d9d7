"""A MedMNIST file or a data set on the Hub -> a folder of pictures in the cache, which is then read like any other."""

import hashlib
import logging
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from hf_medtl.common.system import cache_dir
from hf_medtl.common.text import some
from hf_medtl.errors import MedtlError

logger = logging.getLogger(__name__)

# medmnist/info.py of MedMNIST 3.0; sets that are not here are called by their numbers.
MEDMNIST: dict[str, tuple[str, ...]] = {
    "pneumoniamnist": ("normal", "pneumonia"),
    "breastmnist": ("malignant", "normal or benign"),
    "chestmnist": (
        *("atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax"),
        *("consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia"),
    ),
}
LABELS, PATIENTS = ("label", "labels", "class"), ("patient", "patient_id", "patientid", "subject", "subject_id")


def from_npz(path: Path) -> Path:
    """Folder `split/label/number.png` of a MedMNIST file of any size, 28 to 224 pixels.

    With labels (n, K) of 0 and 1, as those of ChestMNIST, `split/number.png` and a metadata.csv with several a picture.

    Raises:
        MedtlError: no such file, another content, or a set of volumes.
    """
    try:
        content = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        arrays = np.load(path, allow_pickle=False)
        splits = {name: (arrays[f"{name}_images"], arrays[f"{name}_labels"]) for name in ("train", "val", "test")}
    except (OSError, ValueError, KeyError) as error:
        raise MedtlError(
            f"{path} is not a MedMNIST file ({type(error).__name__}): expected an .npz with train_images, train_labels "
            "and the same of val and test."
        ) from error
    for images, labels in splits.values():
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
            raise MedtlError(f"{path}: expected uint8 pictures (n, H, W) or (n, H, W, 3), found {images.shape}.")
        if labels.size != len(images) and (
            labels.ndim != 2 or len(labels) != len(images) or not np.isin(labels, (0, 1)).all()
        ):
            raise MedtlError(
                f"{path}: expected one label a picture, or 0 or 1 for each of several, found {labels.shape} with "
                f"values up to {labels.max()}. Choose another set."
            )
    if len({labels.shape[1:] for _, labels in splits.values()}) > 1:
        raise MedtlError(
            f"{path}: expected as many labels in each split, found {[a.shape for _, a in splits.values()]}."
        )
    known = MEDMNIST.get(path.stem.split("_")[0], ())

    def name(label: int) -> str:
        return known[label] if known else f"{label:02d}"

    def write(folder: Path) -> Iterator[None]:
        rows = []
        for split, (images, labels) in splits.items():
            several = labels.size != len(images)
            for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
                file = folder / split / ("" if several else name(int(label.item()))) / f"{number:06d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(file)
                if several:
                    rows.append(
                        {"file_name": f"{split}/{file.name}", "label": cell(map(name, np.flatnonzero(label).tolist()))}
                    )
                yield
        if rows:
            pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)

    return once(f"medmnist/{path.stem}-{content}", write, sum(len(images) for images, _ in splits.values()))


def from_hub(name: str, revision: str | None = None) -> Path:
    """Folder of a data set on the Hub: `split/label/number`, and a metadata.csv with patient, source and mask.

    The pictures are in the first column of images, the labels in `label`: one, or a list of any number. Columns named
    as ours, or `patient_id`, are understood. Needs twice the disk: the Hub's own cache and the pictures.

    Raises:
        MedtlError: no such data set, no network, or no column of pictures or labels.
    """
    try:
        builder = datasets.load_dataset_builder(name, revision=revision)
        builder.download_and_prepare()
        splits: Any = builder.as_dataset()
    except Exception as error:  # datasets passes on what its HTTP client, its readers or the disk raise
        raise MedtlError(
            f"{name} could not be loaded from the Hub ({type(error).__name__}: {str(error).splitlines()[0][:200]}). "
            "Check the name, the network and `hf auth login`, or give a folder with --data_dir."
        ) from error
    features = next(iter(splits.values())).features
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    label = next((key for key in LABELS if key in features), None)
    if not images or label is None:
        raise MedtlError(
            f"{name}: expected a column of pictures and one called label, found {some(list(features))}. Choose another "
            "data set, or save it as a folder and use --dataset imagefolder."
        )
    image = "image" if "image" in images else images[0]
    patient = next((key for key in PATIENTS if key in features), None)
    several = isinstance(features[label], datasets.List)
    kind = features[label].feature if several else features[label]
    for key in images:
        splits = splits.cast_column(key, datasets.Image(decode=False))

    def write(folder: Path) -> Iterator[None]:
        rows, unlabelled = [], 0
        for split, part in splits.items():
            for number, row in enumerate(part):
                if row[label] in (None, -1):  # as test splits of competitions have it
                    unlabelled += 1
                    continue
                told = row[label] if several else [row[label]]
                names = [str(kind.int2str(one) if isinstance(kind, datasets.ClassLabel) else one) for one in told]
                called = cell(names) if several else names[0]
                place = split if several else f"{split}/{plain(called)}"
                known = PurePosixPath(row.get("image_id") or f"{number:06d}")
                stem = plain(str(known.with_suffix("")))
                file = save(folder, f"{place}/{stem}", row[image])
                mask = save(folder, f"masks/{place}/{stem}", row["mask"]) if "mask" in images and row["mask"] else ""
                rows.append(
                    {
                        "file_name": file,
                        "label": called,
                        "mask": mask,
                        "patient": row[patient] if patient else "",
                        "source": row.get("source") or "",
                        "split": split,
                    }
                )
                yield
        if unlabelled:
            logger.warning("%s: %d pictures have no label and are left out.", name, unlabelled)
        pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)

    key = hashlib.sha256(str(builder.cache_dir).encode()).hexdigest()[:16]
    total = sum(len(part) for part in splits.values())
    return once(f"hub/{name.replace('/', '--')}-{key}", write, total)


def cell(names: Iterable[str]) -> str:
    """What a metadata.csv says of a picture with any number of labels; the | is there even if no other has two."""
    return "|".join([*names, ""]) or "|"


def plain(name: str) -> str:
    """A name that is safe as a file's."""
    return re.sub(r"[^\w .+()-]", "_", name).lstrip(".")


def save(folder: Path, stem: str, image: dict[str, Any]) -> str:
    """Write the bytes of an undecoded picture and return its path below the folder."""
    content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
    suffix = Path(image["path"] or "").suffix.lower() or ".png"
    file = folder / f"{stem}{suffix}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return f"{stem}{suffix}"


def once(name: str, write: Callable[[Path], Iterator[None]], total: int) -> Path:
    """A folder of the cache that appears whole or not at all; `write` yields after each of `total` pictures."""
    folder = cache_dir() / "unpacked" / name
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder.parent) as unfinished:
        new = Path(unfinished) / "pictures"
        new.mkdir()
        for _ in tqdm(write(new), f"Unpacking {folder.name}", total, unit="picture", leave=False, disable=None):
            pass
        try:
            new.rename(folder)
        except OSError:  # another process was quicker
            if not folder.exists():
                raise
    logger.info("Unpacked to %s", folder)
    return folder
