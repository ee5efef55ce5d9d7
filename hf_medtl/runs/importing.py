"""Import of weights of other libraries as a plain folder: safetensors, preprocessing, source, SHA-256 and licence."""

import logging
import urllib.error
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HTTPError
from torch import nn
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification, TimmWrapperModel

from hf_medtl.common.files import write_atomic
from hf_medtl.common.licences import UNKNOWN, Source, card_metadata, normalise
from hf_medtl.common.model_place import check_place
from hf_medtl.common.system import cache_dir, writing_cache
from hf_medtl.common.text import abbreviate, first_line
from hf_medtl.errors import MedtlError
from hf_medtl.models.importing import open_clip, timm_weights, torchxrayvision
from hf_medtl.models.importing.tensor_files import SUFFIXES, read_tensors
from hf_medtl.publish.base_model import find_base_model, sha256_of
from hf_medtl.publish.licences import check_licence
from hf_medtl.publish.templates import render
from hf_medtl.runs.output_folder import check_new, filling

logger = logging.getLogger("hf_medtl")

LIBRARIES = ("torchxrayvision", "open_clip")


@dataclass
class Imported:
    """A model of another library as one of timm, and where it comes from.

    Attributes:
        model: The timm model.
        architecture: Its name.
        source: What was imported, such as an id on the Hub; a file by its name alone.
        page: Its web page; "" if there is none.
        file: The file of weights.
        licence: As its owners state it; "" if they don't.
        link: Page with the text of the licence.
        options: Arguments of the architecture.
        preprocessing: mean, std, interpolation, and input_size if it is not the architecture's.
        labels: Of its outputs; () if they are not known.
        unused: Tensors that the architecture has no place for.
        citation: BibTeX entries.
    """

    model: nn.Module
    architecture: str
    source: str
    page: str
    file: Path
    licence: str
    link: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    preprocessing: dict[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    unused: Sequence[str] = ()
    citation: tuple[str, ...] = ()


def import_model(
    source: str,
    folder: Path,
    *,
    architecture: str | None = None,
    prefix: str | None = None,
    image_size: int | None = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    model_license: str | None = None,
) -> dict[str, Any]:
    """Write the weights of another library to a folder that `transformers`, timm and training load; return import.json.

    Args:
        source: torchxrayvision:NAME, open_clip:OWNER/NAME (or a folder), or a file of weights.
        folder: To write to; new or empty.
        architecture: timm's name of the architecture, for a file.
        prefix: What the names of the tensors begin with, for a file; found by itself if omitted.
        image_size: Height and width of its images in pixels, for a file; the architecture's if omitted.
        image_mean: One number or three, of pixels in [0, 1]; the source's or the architecture's if omitted.
        image_std: Likewise.
        model_license: Licence of the weights, as the Hub names it; what their owners state if omitted.

    Raises:
        MedtlError: Unknown source, no network, a file that only code could open, or tensors that do not fit.

    Example:
        >>> from hf_medtl.runs import import_model
        >>> import_model("torchxrayvision:all", "xrv")["architecture"]  # doctest: +SKIP
        'densenet121'
    """
    folder = Path(folder)
    check_new(folder)
    if model_license is not None:
        check_licence(model_license)
    library, _, name = source.partition(":")
    if library in LIBRARIES:
        if architecture or prefix is not None or image_size:
            raise MedtlError(f"--as, --prefix and --image_size are for files, but {source} has them. Remove them.")
        imported = {"torchxrayvision": _from_torchxrayvision, "open_clip": _from_open_clip}[library](name)
    else:
        imported = _from_file(Path(source).expanduser(), architecture, prefix, image_size)
    if model_license is not None:
        imported.licence, imported.link = model_license, ""
    for key, values in (("mean", image_mean), ("std", image_std)):
        if values is not None:
            imported.preprocessing[key] = [*values] * (3 // len(values))  # one number is for all channels
    with filling(folder, "imports a model") as staging:
        record = _write(imported, staging, folder.name)
    if not imported.licence:
        logger.warning("The licence of %s is not known. Look it up, and give it with --model_license.", imported.source)
    return record


def _from_file(path: Path, architecture: str | None, prefix: str | None, image_size: int | None) -> Imported:
    if path.suffix not in SUFFIXES:
        raise MedtlError(
            f"Expected torchxrayvision:NAME, open_clip:OWNER/NAME or a file of weights ({', '.join(SUFFIXES)}), found "
            f"{path}."
        )
    if not architecture:
        raise MedtlError(
            f"{path.name} does not say what it is a model of: give timm's name of its architecture with --as."
        )
    options: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    settings: dict[str, Any] = {} if image_size is None else {"input_size": [3, image_size, image_size]}
    if variant := timm_weights.VARIANTS.get(architecture):
        architecture, options = variant.name, {**variant.options, **options}
        settings |= {"mean": [variant.mean] * 3, "std": [variant.std] * 3}
    model = timm_weights.create(architecture, **options)
    unused = timm_weights.load_tensors(model, architecture, read_tensors(path), prefix)
    return Imported(model, architecture.removeprefix("timm/"), path.name, "", path, "", options=options,
                    preprocessing=settings, unused=unused)  # fmt: skip


def _from_torchxrayvision(name: str) -> Imported:
    release = torchxrayvision.find_release(name)
    url = torchxrayvision.RELEASE + release.file
    own = Path.home() / ".torchxrayvision" / "models_data" / release.file  # where the library keeps it
    path = own if own.is_file() else _download(url, release.file)
    tensors = read_tensors(path, torchxrayvision.CLASSES)
    model, labels = torchxrayvision.convert(tensors, release)
    settings = {"mean": list(torchxrayvision.MEAN), "std": list(torchxrayvision.STD), "interpolation": "bilinear",
                "input_size": [3, release.size, release.size]}  # fmt: skip
    return Imported(model, release.architecture, f"torchxrayvision:{name}", url, path, torchxrayvision.LICENCE,
                    preprocessing=settings, labels=labels, citation=(torchxrayvision.CITATION,))  # fmt: skip


def _from_open_clip(name: str) -> Imported:
    name = name.removeprefix("hf-hub:")
    check_place(name)
    local = Path(name).expanduser()

    def find(file: str) -> Path | None:
        if local.is_dir():
            return local / file if (local / file).is_file() else None
        try:
            return Path(hf_hub_download(name, file))
        except EntryNotFoundError:
            return None
        except (OSError, HTTPError) as error:
            raise MedtlError(
                f"{file} of {name} could not be downloaded ({type(error).__name__}: {first_line(error)}). Check the "
                f"name, the network and `hf auth login`; a gated model's terms are at https://huggingface.co/{name}."
            ) from error

    config = open_clip.read_config(find)
    path = next((path for file in open_clip.WEIGHTS if (path := find(file)) is not None), None)
    if path is None:
        raise MedtlError(f"{name} has no file of weights: expected {' or '.join(open_clip.WEIGHTS)}.")
    model, architecture, options = open_clip.convert(read_tensors(path), config)
    cached = try_to_load_from_cache(name, open_clip.CONFIG) if not local.is_dir() else None
    base = find_base_model(name, Path(cached).parent.name if isinstance(cached, str) else None)
    page = "" if local.is_dir() else f"https://huggingface.co/{name}"
    return Imported(model, architecture, f"open_clip:{base.name}", page, path, base.licence or "", base.licence_link,
                    options, open_clip.preprocessing(config), citation=base.bibtex)  # fmt: skip


def _download(url: str, file: str) -> Path:
    """Return a downloaded file in the cache.

    Raises:
        MedtlError: It can't be downloaded.
    """
    path = cache_dir() / "imports" / file
    if path.is_file():
        return path
    with writing_cache(path.parent):
        try:
            torch.hub.download_url_to_file(url, str(path), progress=True)  # by way of a temporary file
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise MedtlError(
                f"{url} could not be downloaded ({first_line(error)}). Check the network, or download it elsewhere "
                f"to {path}."
            ) from error
    return path


def _write(imported: Imported, folder: Path, name: str) -> dict[str, Any]:
    """Write the model, its card and import.json; return the content of the latter."""
    model = imported.model
    settings = dict(getattr(model, "pretrained_cfg", {})) | imported.preprocessing
    kept = ("input_size", "fixed_input_size", "pool_size", "interpolation", "mean", "std", "first_conv", "classifier")
    # Whole images, as everywhere in hf_medtl.
    cfg = {key: settings[key] for key in kept if settings.get(key) is not None} | {
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }
    outputs = int(getattr(model, "num_classes", 0) or 0)
    labels = imported.labels or tuple(f"LABEL_{number}" for number in range(outputs))
    options: dict[str, Any] = {
        "architecture": imported.architecture,
        "pretrained_cfg": cfg,
        "model_args": imported.options or None,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
        "problem_type": "multi_label_classification" if imported.labels else None,
    }
    config = TimmWrapperConfig(**options)
    wrapper = (TimmWrapperForImageClassification if outputs else TimmWrapperModel)(config)
    wrapper.load_state_dict(model.state_dict())
    # By timm's own names, so that timm loads the folder, too.
    weights = {key.removeprefix("timm_model."): value for key, value in wrapper.state_dict().items()}
    wrapper.save_pretrained(folder, state_dict=weights)
    record = {
        "source": imported.source,
        "page": imported.page,
        "file": imported.file.name,
        "sha256": sha256_of([imported.file])[imported.file.name],
        "architecture": imported.architecture,
        "licence": imported.licence or UNKNOWN,
        "unused_tensors": len(imported.unused),
    }
    write_atomic(folder / "import.json", record)
    write_atomic(folder / "README.md", _card(imported, record, name, cfg, labels))
    return record


def _card(
    imported: Imported, record: Mapping[str, Any], name: str, cfg: Mapping[str, Any], labels: Sequence[str]
) -> str:
    licence = Source(imported.source, imported.licence, imported.link)
    metadata = ModelCardData(
        **card_metadata(normalise(imported.licence) or UNKNOWN, [licence]),
        library_name="transformers",
        pipeline_tag="image-classification" if imported.labels else "image-feature-extraction",
        tags=["medical", "hf_medtl", "timm"],
    )
    unused = abbreviate(list(imported.unused), 3)
    facts = {**record, "name": name, "cfg": cfg, "labels": labels if imported.labels else (), "unused": unused,
             "citation": imported.citation}  # fmt: skip
    return f"---\n{metadata.to_yaml()}\n---\n\n{render('import', facts)}"
