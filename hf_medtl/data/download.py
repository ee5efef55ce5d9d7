"""Dataset download: unpack a MedMNIST file or a Hub dataset into an image folder in the cache."""

import hashlib
import logging
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import numpy as np
import pandas as pd
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HTTPError
from PIL import Image
from tqdm.auto import tqdm

from hf_medtl.common.csv_cells import to_csv
from hf_medtl.common.files import scratch_folder, write_atomic
from hf_medtl.common.licences import UNKNOWN, read_licence
from hf_medtl.common.system import cache_dir, writing_cache
from hf_medtl.common.text import abbreviate
from hf_medtl.data.columns import ALIASES, plain_name
from hf_medtl.data.split_names import parse_split
from hf_medtl.errors import MedtlError

logger = logging.getLogger(__name__)

MAX_RATIO = 200  # of the arrays of a MedMNIST file and their compressed bytes, beyond a GiB
# From medmnist/info.py of MedMNIST 3.0; labels of other sets are named by their numbers.
MEDMNIST: dict[str, tuple[str, ...]] = {
    "pneumoniamnist": ("normal", "pneumonia"),
    "breastmnist": ("malignant", "normal or benign"),
    "chestmnist": (
        *("atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax"),
        *("consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia"),
    ),
}


def unpack_medmnist(path: Path) -> Path:
    """Unpack a MedMNIST file of any size (28 to 224 pixels) and return the folder.

    Images are `split/label/number.png`. With multilabel targets (n, K) of 0 and 1, such as those of ChestMNIST, they
    are `split/number.png` with a metadata.csv.

    Raises:
        MedtlError: No such file, unexpected content, or a set of volumes.
    """
    try:
        content = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > max(MAX_RATIO * path.stat().st_size, 1 << 30):
            raise ValueError("more zeros than any images have")
        arrays = np.load(path, allow_pickle=False)
        splits = {name: (arrays[f"{name}_images"], arrays[f"{name}_labels"]) for name in ("train", "val", "test")}
        if not all(isinstance(array, np.ndarray) for pair in splits.values() for array in pair):
            raise ValueError("members that are no arrays")
    except Exception as error:  # NumPy passes on whatever its readers of archives and of headers raise
        raise MedtlError(
            f"{path} is not a MedMNIST file ({type(error).__name__}): expected an .npz with train_images, train_labels "
            "and the same for val and test."
        ) from error
    for images, labels in splits.values():
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
            raise MedtlError(f"{path}: expected uint8 images (n, H, W) or (n, H, W, 3), found {images.shape}.")
        if labels.dtype.kind not in "ui" or not images.size or not labels.size or labels.min() < 0:
            raise MedtlError(
                f"{path}: expected images with labels 0, 1, ..., found {labels.dtype} {labels.shape} for images "
                f"{images.shape}. Download it again."
            )
        if labels.size != len(images) and (
            labels.ndim != 2 or len(labels) != len(images) or not np.isin(labels, (0, 1)).all()
        ):
            raise MedtlError(
                f"{path}: expected one label per image, or 0 or 1 for each of multiple labels, found {labels.shape} "
                f"with values up to {labels.max()}. Choose another set."
            )
    if len({labels.shape[1:] for _, labels in splits.values()}) > 1:
        raise MedtlError(
            f"{path}: expected the same number of labels in each split, found {[a.shape for _, a in splits.values()]}."
        )
    label_names = MEDMNIST.get(path.stem.split("_")[0], ())
    number = max(
        labels.max() + 1 if labels.size == len(images) else labels.shape[1] for images, labels in splits.values()
    )
    if label_names and number > len(label_names):
        raise MedtlError(
            f"{path}: expected the {len(label_names)} labels {', '.join(label_names)}, found {number}. Give the file "
            "the name of its set."
        )

    def name(label: int) -> str:
        return label_names[label] if label_names else f"{label:02d}"

    def write(folder: Path) -> Iterator[None]:
        rows = []
        for split, (images, labels) in splits.items():
            multilabel = labels.size != len(images)
            for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
                file = folder / split / ("" if multilabel else name(int(label.item()))) / f"{number:06d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(file)
                if multilabel:
                    names = _join_labels(map(name, np.flatnonzero(label).tolist()))
                    rows.append({"file_name": f"{split}/{file.name}", "label": names})
                yield
        if rows:
            write_atomic(folder / "metadata.csv", to_csv(pd.DataFrame(rows)))

    return _create_once(f"medmnist/{path.stem}-{content}", write, sum(len(images) for images, _ in splits.values()))


def download_from_hub(name: str, columns: Mapping[str, str] | None = None) -> Path:
    """Download a dataset from the Hub into a folder `split/label/number` with a metadata.csv, and return the folder.

    Images are taken from the column `image` or else the first image column, labels (one, or a list for multilabel
    data), patients and sources from columns with a usual name (`columns.ALIASES`), and mask and image_id from columns
    with these names. This needs twice the disk space: for the Hub's own cache and for the images.

    Args:
        name: Repository id, `owner/name`.
        columns: Columns of other names: file_name (the images), label, patient, source, mask -> column.

    Raises:
        MedtlError: No such dataset, no network, or no column of images or labels.
    """
    try:
        builder = datasets.load_dataset_builder(name)
        builder.download_and_prepare()
        splits: Any = builder.as_dataset()
    except Exception as error:  # datasets passes on what its HTTP client, its readers or the disk raise
        raise MedtlError(
            f"{name} could not be loaded from the Hub ({type(error).__name__}: {str(error).splitlines()[0][:200]}). "
            "Check the name, the network and `hf auth login`, or specify a folder with --data_dir."
        ) from error
    features = next(iter(splits.values())).features
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    chosen = _choose_columns(name, list(features), images, columns or {})
    label, patient, source, mask_column = (chosen.get(field) for field in ("label", "patient", "source", "mask"))
    if not images or label is None:
        raise MedtlError(
            f"{name}: expected a column of images and one called label, found {abbreviate(list(features))}. Choose "
            "another dataset, or save it as a folder and use --dataset imagefolder."
        )
    image = chosen["file_name"]
    if {image, mask_column or image} - set(images):
        raise MedtlError(f"{name}: --columns: expected columns of images, which are {', '.join(images)}.")
    multilabel = isinstance(features[label], datasets.List)
    label_feature = features[label].feature if multilabel else features[label]
    for key in images:
        splits = splits.cast_column(key, datasets.Image(decode=False))

    def write(folder: Path) -> Iterator[None]:
        rows, unlabelled = [], 0
        for split, part in splits.items():
            for number, row in enumerate(part):
                if row[label] in (None, -1):  # as in test splits of competitions
                    unlabelled += 1
                    continue
                values = row[label] if multilabel else [row[label]]
                if isinstance(label_feature, datasets.ClassLabel):
                    values = map(label_feature.int2str, values)
                names = list(map(str, values))
                text = _join_labels(names) if multilabel else names[0]
                subfolder = split if multilabel else f"{split}/{_safe_file_name(text)}"
                image_id = PurePosixPath(row.get("image_id") or f"{number:06d}")
                stem = f"{subfolder}/{_safe_file_name(str(image_id.with_suffix('')))}"
                file = _save_image(folder, stem, row[image])
                mask = ""
                if mask_column and row[mask_column]:
                    mask = _save_image(folder, f"masks/{stem}", row[mask_column])
                rows.append(
                    {
                        "file_name": file,
                        "label": text,
                        "mask": mask,
                        "patient": row[patient] if patient else "",
                        "source": (source and row[source]) or "",
                        "split": parse_split(split) or "",
                    }
                )
                yield
        if unlabelled:
            logger.warning("%s: %d images have no label and are excluded.", name, unlabelled)
        write_atomic(folder / "metadata.csv", to_csv(pd.DataFrame(rows)))

    key = hashlib.sha256(f"{builder.cache_dir} {sorted(chosen.items())}".encode()).hexdigest()[:16]
    total = sum(len(part) for part in splits.values())
    return _create_once(f"hub/{name.replace('/', '--')}-{key}", write, total)


def licence_on_hub(name: str) -> str:
    """Return the licence on the card of a dataset on the Hub; "unknown" if it has none or can't be read."""
    try:
        return read_licence(Path(hf_hub_download(name, "README.md", repo_type="dataset")))[0] or UNKNOWN
    except (OSError, HTTPError):
        return UNKNOWN


def _choose_columns(name: str, features: list[str], images: list[str], stated: Mapping[str, str]) -> dict[str, str]:
    """Return field -> column of a dataset on the Hub: those stated, else those with a usual name.

    Raises:
        MedtlError: A stated column does not exist.
    """
    chosen = dict(stated)
    for field, column in stated.items():
        if column not in features:
            raise MedtlError(
                f"{name} has no column {column!r} for {field}. Its columns are {abbreviate(features, 20)}."
            )
    for field in ("label", "patient", "source"):
        usual = (key for alias in ALIASES[field] for key in features if plain_name(key) == alias)
        if field not in chosen and (match := next(usual, None)):
            chosen[field] = match
    if images:
        chosen.setdefault("file_name", "image" if "image" in images else images[0])
    if "mask" in images:
        chosen.setdefault("mask", "mask")
    logger.info("%s: %s.", name, ", ".join(f"{field} from {column}" for field, column in chosen.items()))
    return chosen


def _join_labels(names: Iterable[str]) -> str:
    """Join an image's labels for a metadata.csv, with a | even for a single one, which marks the data as multilabel."""
    return "|".join([*names, ""]) or "|"


def _safe_file_name(name: str) -> str:
    """Return a name that is safe as a file name."""
    return re.sub(r"[^\w .+()-]", "_", name).lstrip(".")


def _save_image(folder: Path, stem: str, image: dict[str, Any]) -> str:
    """Write the bytes of an undecoded image and return its path relative to the folder."""
    content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
    suffix = Path(image["path"] or "").suffix.lower() or ".png"
    file = folder / f"{stem}{suffix}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return f"{stem}{suffix}"


def _create_once(name: str, write: Callable[[Path], Iterator[None]], total: int) -> Path:
    """Return a cache folder, creating it atomically if needed; `write` yields after each of `total` images."""
    folder = cache_dir() / "unpacked" / name
    if folder.exists():
        return folder
    with writing_cache(folder.parent), scratch_folder(folder.parent) as new:
        for _ in tqdm(write(new), f"Unpacking {folder.name}", total, unit="image", leave=False, disable=None):
            pass
        try:
            new.rename(folder)
        except OSError:  # another process was faster
            if not folder.exists():
                raise
    logger.info("Unpacked to %s", folder)
    return folder
