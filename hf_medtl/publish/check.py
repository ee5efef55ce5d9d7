"""Whether a run can be published: are its files whole, and does its card say what a reader must know?"""

import hashlib
import json
import math
import mmap
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
import yaml
from huggingface_hub import get_token
from huggingface_hub.repocard import ModelCard
from PIL import Image
from safetensors import SafetensorError, safe_open

from hf_medtl.errors import MedtlError
from hf_medtl.publish.base_model import sha256_of
from hf_medtl.publish.licences import LICENCES

PARTS = ("README.md", "config.json", "results.json", "recipe.yaml")
TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")


class Field(NamedTuple):
    """Something that a card should say.

    Attributes:
        words: for people.
        given: whether a card's text and results.json say it.
        required: whether nothing is published without it.
    """

    words: str
    given: Callable[[str, Mapping[str, Any]], bool]
    required: bool = True


def _says(*phrases: str) -> Callable[[str, Mapping[str, Any]], bool]:
    return lambda text, results: all(phrase in text for phrase in phrases)


# What readers are to find by CLAIM 2024 (https://doi.org/10.1148/ryai.240300), TRIPOD+AI
# (https://doi.org/10.1136/bmj-2023-078378) and Model Facts (https://doi.org/10.1038/s41746-020-0253-3).
# First what only the author knows.
PROSE = {
    "intended_use": Field("intended use and users", _says("## Intended use", "Users:")),
    "out_of_scope": Field("what it is not for", _says("Out of scope:")),
    "limits": Field("limits, biases and known shortcuts", _says("## Limits")),
    "population": Field("whose pictures, from where and when, and how they were made", _says("Population:")),
    "reference_standard": Field("how the truth was established, and by whom", _says("Reference standard:")),
}
AUTHOR = PROSE | {
    "directions": Field("what to do with an answer, and when to stop using it", _says("Stop using it"), required=False),
    "support": Field("funding, interests, ethics approval", _says("Funding and interests:"), required=False),
}
# Then what a run fills in. What is not required is missing in cards of older versions, or needs another command.
FIELDS = AUTHOR | {
    "not_a_device": Field("that it is no medical device", _says("Not a medical device")),
    "results": Field("results with intervals", lambda text, results: _limits(results)),
    "data": Field("data, their licence and problems, and how they were split", _says("## Data and split", "licence")),
    "procedure": Field("preprocessing, training and environment", _says("## Procedure", "Preprocessing:")),
    "loading": Field("how to load it", _says("## How to load it")),
    "split": Field("how pictures were split, by patient or not", _says("\nSplit: ", "patients |"), required=False),
    "selection": Field("how the weights were chosen, and the seeds", _says("- The weights are", "- Seeds:"), False),
    "origin": Field("which weights it started from", _says("- Model: `"), required=False),
    "calibration": Field("whether probabilities are calibrated", _says("calibrat"), required=False),
    "failures": Field("where it fails", _says("### Where it fails"), required=False),
    "environment": Field("software, hardware, time, energy", _says("## Environment and cost", "Energy:"), False),
    "licences": Field("licences of data, base model and model", _says("## Licences"), required=False),
    "citation": Field("how to cite data and base model", _says("## Citation", "```bibtex"), required=False),
    "exports": Field("exports and what they are worth (hf-medtl export)", _says("<!-- exports -->"), required=False),
    "external": Field(
        "a test on another data set (hf-medtl evaluate)",
        lambda text, its: bool(its.get("external")) or "- On other data: " in text,
        required=False,
    ),
    "explanations": Field(
        "whether its maps are to be believed (hf-medtl explain)", _says("`explanations.json`"), required=False
    ),
    "robustness": Field(
        "robustness to corrupted pictures (hf-medtl evaluate --robustness)", _says("  Robustness:"), required=False
    ),
    "subgroups": Field(
        "results by subgroup or source (hf-medtl evaluate --by)",
        lambda text, its: bool(its.get("by_source")) or "  Subgroups by " in text,
        required=False,
    ),
}


def missing(text: str, results: Mapping[str, Any], fields: Mapping[str, Field] = FIELDS) -> dict[str, Field]:
    """The fields that a card does not have; those waived in writing count as given."""
    waived = set(re.findall(r"^- (\w+) is not given: \S", text, flags=re.MULTILINE))
    return {name: field for name, field in fields.items() if name not in waived and not field.given(text, results)}


def check_prose(text: str) -> None:
    """Raise MedtlError unless the prose of a card has what only its author knows."""
    if lacking := missing(text, {}, PROSE):
        words = ", ".join(field.words for field in lacking.values())
        raise MedtlError(
            f"--push_to_hub publishes a card, and --model_card does not give {words}. model_cards/ has examples with "
            "the headings; or leave --push_to_hub out and publish later with hf-medtl push --waive."
        )


def check_whole(folder: Path) -> dict[str, Any]:
    """results.json of a finished run whose files are whole.

    Raises:
        MedtlError: what is missing or damaged.
    """
    if (folder / "UNFINISHED").exists() or not (folder / "config.json").is_file():
        raise MedtlError(f"{folder} is not a finished run, so nothing was uploaded.")
    if absent := [name for name in PARTS if not (folder / name).is_file()]:
        raise MedtlError(
            f"{folder} has no {', '.join(absent)}. Nothing was uploaded: train again, or restore the files."
        )
    read = {name: _json(folder / name) for name in ("config.json", "results.json")}
    for path in [*weight_files(folder), *folder.glob("outliers.safetensors")]:
        _check_weights(path)
    check_exports(folder)
    if absent := sorted(name for name in _loaded_with(folder, read["config.json"]) if not (folder / name).is_file()):
        raise MedtlError(f"{folder} has no {', '.join(absent)}, so nobody could load it. Nothing was uploaded.")
    _check_tables(folder, read["results.json"])
    return read["results.json"]


def check_exports(folder: Path) -> None:
    """Raise MedtlError if a run's exports were not made from its weights and decisions, or have changed since."""
    for path in sorted(folder.glob("export/*/export.json")):
        said, place = _json(path), path.parent
        made_from = said.get("weights_sha256")
        name = f"--format {said['format']}{' --int8' if said['int8'] else ''}"
        again = f"Write it again (hf-medtl export {folder} {name}), or delete {place}. Nothing was uploaded."
        if made_from is None:
            raise MedtlError(
                f"{path} does not say which weights it was made from, as an older version wrote it. {again}"
            )
        if made_from != sha256_of(weight_files(folder)):
            raise MedtlError(f"{place} was made from other weights than those of {folder}, which are newer. {again}")
        files = [place / file for file in said["sha256"]]
        if not all(file.is_file() for file in files) or sha256_of(files) != said["sha256"]:
            raise MedtlError(f"{place} is not as it was written: {', '.join(said['sha256'])} are damaged. {again}")
        decision, config = _json(place / "preprocessing.json")["decision"], _json(folder / "config.json")
        if other := [key for key, value in decision.items() if config.get(key) != value]:
            raise MedtlError(f"{place} decides otherwise than {folder}/config.json: {', '.join(other)}. {again}")


def weight_files(folder: Path) -> list[Path]:
    """The files of a saved model's weights, in parts or in one."""
    index = folder / "model.safetensors.index.json"
    names = sorted(set(_json(index)["weight_map"].values())) if index.exists() else ["model.safetensors"]
    return [folder / name for name in names]


def check_files(files: Mapping[str, Path]) -> None:
    """Raise MedtlError if what would be uploaded is damaged, or has not the pictures that its card shows.

    Args:
        files: name in the repository -> file.
    """
    for name, path in files.items():
        try:
            if path.suffix == ".json":
                _json(path)
            elif path.suffix == ".png":
                Image.open(path).verify()
        except (OSError, SyntaxError) as error:  # as Pillow calls a broken PNG
            raise MedtlError(f"{name} is damaged ({error}). Nothing was uploaded.") from error
    shown = re.findall(r"\]\((figures/[^)]+)\)", files["README.md"].read_text(encoding="utf-8"))
    if lacking := sorted({*shown} - files.keys()):
        raise MedtlError(f"The card shows {', '.join(lacking)}, which the run has not. Nothing was uploaded.")


def check_card(folder: Path) -> ModelCard:
    """The run's card, if its metadata can be read, the Hub knows its licence, and task and numbers are in order.

    Raises:
        MedtlError: it can't, or it does not.
    """
    try:
        card = ModelCard.load(folder / "README.md")
    except (ValueError, yaml.YAMLError) as error:
        raise MedtlError(f"The card of {folder} has invalid metadata ({str(error).splitlines()[0]}).") from error
    absent = [name for name in ("license", "pipeline_tag", "library_name") if not getattr(card.data, name, None)]
    if absent:
        raise MedtlError(f"The metadata of {folder}/README.md do not give {', '.join(absent)}.")
    task = _json(folder / "results.json").get("task")
    if card.data.pipeline_tag != task:
        raise MedtlError(
            f"The pipeline_tag of {folder}/README.md is {card.data.pipeline_tag!r}, the task of its results {task!r}."
        )
    check_licence(card.data.license)
    for its in card.data.eval_results or ():
        if type(its.metric_value) not in (int, float) or not math.isfinite(its.metric_value):
            raise MedtlError(f"The model-index of {folder}/README.md has {its.metric_value!r} for {its.metric_type}.")
    return card


def check_licence(name: Any) -> None:
    """Raise MedtlError if the Hub does not know a licence by this name."""
    if name not in LICENCES:
        raise MedtlError(
            f"The Hub knows no licence {name!r}. Give one by its name there, such as apache-2.0 or cc-by-nc-4.0 "
            "(https://huggingface.co/docs/hub/repositories-licenses), or other."
        )


def check_secrets(files: Mapping[str, Path]) -> None:
    """Raise MedtlError if a file, of whatever kind, holds something that looks like a token, or the one in use."""
    for name, path in files.items():
        if path.stat().st_size == 0:  # which can't be mapped
            continue
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if holds_token(content):
                raise MedtlError(
                    f"{name} holds an access token. Nothing was uploaded: remove it, and revoke the token."
                )


def holds_token(content: bytes | mmap.mmap) -> bool:
    """Whether there is something that looks like a token of the Hub, or the one in use."""
    own = (get_token() or "").encode()
    return bool(TOKEN.search(content)) or (len(own) > 5 and content.find(own) >= 0)


def _json(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a result")

    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except (ValueError, OSError) as error:
        raise MedtlError(f"{path} is damaged ({error}). Nothing was uploaded.") from error


def _check_weights(path: Path) -> None:
    try:
        with safe_open(path, "pt") as stream:
            broken = [name for name in stream.keys() if not torch.isfinite(stream.get_tensor(name)).all()]  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise MedtlError(f"{path} is missing or damaged ({error}). Nothing was uploaded.") from error
    if broken:
        raise MedtlError(f"{path} has numbers that are none in {broken[0]}: training failed. Nothing was uploaded.")


def _loaded_with(folder: Path, config: Mapping[str, Any]) -> set[str]:
    """Files that loading asks for besides config.json and the weights."""
    stock_timm = "pretrained_cfg" in config and "image_processor_type" not in config  # it needs no file of its own
    found = set() if stock_timm else {"preprocessor_config.json"}
    beside = [folder / name for name in found if (folder / name).is_file()]
    for its in (config, *map(_json, beside)):
        for classes in (its.get("auto_map") or {}).values():
            names = [classes] if isinstance(classes, str) else classes
            found |= {f"{name.partition('.')[0]}.py" for name in names if name}
    return found


def _check_tables(folder: Path, results: Mapping[str, Any]) -> None:
    splits, predictions = folder / "splits.csv", folder / "predictions.csv"
    try:
        if "splits_sha256" in results and hashlib.sha256(splits.read_bytes()).hexdigest() != results["splits_sha256"]:
            raise MedtlError(f"{splits} is not the split that was tested, by results.json. Nothing was uploaded.")
        if "n" in results and len(pd.read_csv(predictions, dtype=str)) != results["n"]:
            raise MedtlError(f"{predictions} has not the {results['n']} pictures tested. Nothing was uploaded.")
    except (OSError, ValueError) as error:
        raise MedtlError(f"A table of {folder} is missing or damaged ({error}). Nothing was uploaded.") from error


def _limits(results: Mapping[str, Any]) -> bool:
    metrics = results.get("metrics", {}).values()
    return any(its["value"] is not None and its["low"] is not None for its in metrics)
