"""Publication checks that refuse a push: incomplete files, metadata, licence, exports, access tokens."""

import hashlib
import math
import mmap
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from huggingface_hub import get_token
from huggingface_hub.repocard import ModelCard
from PIL import Image
from safetensors import SafetensorError, safe_open

from hf_medtl.common.files import read_json, read_object
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.decisions import DecisionRule
from hf_medtl.models.untrusted import check_model
from hf_medtl.publish.base_model import sha256_of
from hf_medtl.publish.licences import check_licence

REQUIRED_FILES = ("README.md", "config.json", "results.json", "recipe.yaml")
TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")


def check_run_files(folder: Path) -> dict[str, Any]:
    """Check that a run is finished and its files are complete; return the content of results.json.

    Raises:
        MedtlError: A file is missing or damaged.
    """
    run = RunFolder(folder)
    run.check_has_model()
    if run.is_marked or not (folder / "config.json").is_file():
        raise MedtlError(f"{folder} is not a finished run, so nothing was uploaded.")
    if missing := [name for name in REQUIRED_FILES if not (folder / name).is_file()]:
        raise MedtlError(
            f"{folder} has no {', '.join(missing)}. Nothing was uploaded: train again, or restore the files."
        )
    check_model(folder)
    config, results = _read_json(folder / "config.json"), _read_json(folder / "results.json")
    DecisionRule.from_config(config)
    for path in [*weight_files(folder), *folder.glob("outliers.safetensors")]:
        _check_weights(path)
    check_exports(folder)
    if missing := sorted(name for name in _files_for_loading(folder, config) if not (folder / name).is_file()):
        raise MedtlError(f"{folder} has no {', '.join(missing)}, so it could not be loaded. Nothing was uploaded.")
    _check_tables(folder, results)
    return results


def check_exports(folder: Path) -> None:
    """Raise MedtlError if a run's exports don't match its weights and decision rule, or have changed since."""
    for path in sorted(folder.glob("export/*/export.json")):
        record, export = _read_json(path), path.parent
        options = f"--format {record['format']}{' --int8' if record['int8'] else ''}"
        advice = f"Write it again (hf-medtl export {folder} {options}), or delete {export}. Nothing was uploaded."
        if record.get("weights_sha256") is None:
            raise MedtlError(
                f"{path} was written by an older version and does not name the weights it was made from. {advice}"
            )
        if record["weights_sha256"] != sha256_of(weight_files(folder)):
            raise MedtlError(f"{export} was made from other weights than those of {folder}, which are newer. {advice}")
        files = [export / name for name in record["sha256"]]
        if not all(file.is_file() for file in files) or sha256_of(files) != record["sha256"]:
            raise MedtlError(
                f"{export} has changed since the export: {', '.join(record['sha256'])} are damaged. {advice}"
            )
        decision, config = _read_json(export / "preprocessing.json")["decision"], _read_json(folder / "config.json")
        if different := [key for key, value in decision.items() if config.get(key) != value]:
            raise MedtlError(
                f"The decision rule of {export} differs from {folder}/config.json: {', '.join(different)}. {advice}"
            )


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a saved model's weights: one file, or shards."""
    index = folder / "model.safetensors.index.json"
    names = sorted(set(_read_json(index)["weight_map"].values())) if index.exists() else ["model.safetensors"]
    return [folder / name for name in names]


def check_files(files: Mapping[str, Path]) -> None:
    """Raise MedtlError if a file to upload is damaged, or a figure of the card is missing.

    Args:
        files: Name in the repository -> file.
    """
    for name, path in files.items():
        try:
            if path.suffix == ".json":
                _read_json(path, read_json)
            elif path.suffix == ".png":
                Image.open(path).verify()
        except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG
            raise MedtlError(f"{name} is damaged ({error}). Nothing was uploaded.") from error
    figures = re.findall(r"\]\((figures/[^)]+)\)", files["README.md"].read_text(encoding="utf-8"))
    if missing := sorted({*figures} - files.keys()):
        raise MedtlError(f"The card shows {', '.join(missing)}, which the run does not have. Nothing was uploaded.")


def check_card(folder: Path) -> ModelCard:
    """Return the card of a run after checking its metadata: licence, task and model-index.

    Raises:
        MedtlError: The metadata can't be read, lack a field, name a licence that the Hub does not know, or disagree
            with the results.
    """
    try:
        card = ModelCard.load(folder / "README.md")
    except (ValueError, yaml.YAMLError) as error:
        raise MedtlError(f"The card of {folder} has invalid metadata ({str(error).splitlines()[0]}).") from error
    of_model = () if RunFolder(folder).only_measures else ("pipeline_tag", "library_name")
    missing = [name for name in ("license", *of_model) if not getattr(card.data, name, None)]
    if missing:
        raise MedtlError(f"The metadata of {folder}/README.md do not give {', '.join(missing)}.")
    task = _read_json(folder / "results.json").get("task")
    if of_model and card.data.pipeline_tag != task:
        raise MedtlError(
            f"The pipeline_tag of {folder}/README.md is {card.data.pipeline_tag!r}, the task of its results {task!r}."
        )
    check_licence(card.data.license)
    for result in card.data.eval_results or ():
        value = result.metric_value
        if type(value) not in (int, float) or not abs(value) < math.inf:
            raise MedtlError(f"The model-index of {folder}/README.md has {value!r} for {result.metric_type}.")
    return card


def check_secrets(files: Mapping[str, Path]) -> None:
    """Raise MedtlError if a file of any type holds something that looks like an access token, or the token in use."""
    for name, path in files.items():
        if path.stat().st_size == 0:  # can't be memory-mapped
            continue
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if contains_token(content):
                raise MedtlError(
                    f"{name} holds an access token. Nothing was uploaded: remove it, and revoke the token."
                )


def contains_token(content: bytes | mmap.mmap) -> bool:
    """Return True if the content holds something that looks like a token of the Hub, or the token in use."""
    own = (get_token() or "").encode()
    return bool(TOKEN.search(content)) or (len(own) > 5 and content.find(own) >= 0)


def _read_json(path: Path, read: Callable[[Path], Any] = read_object) -> Any:
    try:
        return read(path)
    except MedtlError as error:
        raise MedtlError(f"{error} Nothing was uploaded.") from error


def _check_weights(path: Path) -> None:
    try:
        with safe_open(path, "pt") as stream:
            broken = [name for name in stream.keys() if not torch.isfinite(stream.get_tensor(name)).all()]  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise MedtlError(f"{path} is missing or damaged ({error}). Nothing was uploaded.") from error
    if broken:
        raise MedtlError(f"{path} contains NaN or infinity in {broken[0]}: training diverged. Nothing was uploaded.")


def _files_for_loading(folder: Path, config: Mapping[str, Any]) -> set[str]:
    """Return the files that loading needs besides config.json and the weights."""
    stock_timm = "pretrained_cfg" in config and "image_processor_type" not in config  # needs no processor file
    names = set() if stock_timm else {"preprocessor_config.json"}
    existing = [folder / name for name in names if (folder / name).is_file()]
    for content in (config, *map(_read_json, existing)):
        for classes in (content.get("auto_map") or {}).values():
            classes = [classes] if isinstance(classes, str) else classes
            names |= {f"{name.partition('.')[0]}.py" for name in classes if name}
    return names


def _check_tables(folder: Path, results: Mapping[str, Any]) -> None:
    splits, predictions = folder / "splits.csv", folder / "predictions.csv"
    try:
        if "splits_sha256" in results and hashlib.sha256(splits.read_bytes()).hexdigest() != results["splits_sha256"]:
            raise MedtlError(
                f"{splits} is not the split that the model was tested on, by results.json. Nothing was uploaded."
            )
        if "n" in results and len(pd.read_csv(predictions, dtype=str)) != results["n"]:
            raise MedtlError(f"{predictions} does not have the {results['n']} tested images. Nothing was uploaded.")
    except (OSError, ValueError) as error:
        raise MedtlError(f"A table of {folder} is missing or damaged ({error}). Nothing was uploaded.") from error
