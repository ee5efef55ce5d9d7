"""Models that belong together: of folds or of a study, each in a repository of its own, and in one Collection."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, RepoUrl

from hf_medtl.errors import MedtlError
from hf_medtl.publish.hub import hub_errors, with_retries


def models_of(folder: Path) -> dict[str, Path]:
    """What is added to a repository's name -> folder of a run.

    A run is a model by itself. All folds are one each. A study is one for each arm: the cell with the largest share of
    the training pictures, and of these the one of the lowest seed. Not the one with the best results: these are of test
    pictures, and would no longer be honest if they chose.

    Args:
        folder: of a finished run, of all folds, or of a study.

    Raises:
        MedtlError: results.json or study.json can't be read.
    """
    if cells := _read(folder / "study.json").get("cells"):
        best = sorted(cells, key=lambda cell: (-cell["percent"], cell["seed"]))
        arms = dict.fromkeys(cell["arm"] for cell in cells)
        its = {arm: next(cell["folder"] for cell in best if cell["arm"] == arm) for arm in arms}
        return {f"-{'-'.join(re.findall('[A-Za-z0-9_.]+', arm))}": folder / place for arm, place in its.items()}
    if folds := _read(folder / "results.json").get("folds"):
        return {f"-fold-{its['fold']}": folder / f"fold-{its['fold']}" for its in folds}
    return {"": folder}


def collect(title: str, addresses: Sequence[str], *, private: bool = False) -> str:
    """Put published models into the Collection of this title, made if there is none; return its address.

    Args:
        title: for people.
        addresses: of the models, all of one owner.
        private: of a new Collection.

    Raises:
        MedtlError: the Hub refuses or can't be reached.
    """
    api, names = HfApi(), [RepoUrl(address).repo_id for address in addresses]
    with hub_errors(
        f"The Collection {title!r} could not be made", "The models are uploaded; the same command goes on."
    ):
        owner = names[0].partition("/")[0]
        made = with_retries(lambda: api.create_collection(title, namespace=owner, private=private, exists_ok=True))
        for name in names:
            _add(api, made.slug, name)
    return made.url


def _add(api: HfApi, slug: str, name: str) -> None:
    with_retries(lambda: api.add_collection_item(slug, name, "model", exists_ok=True))


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise MedtlError(f"{path} is damaged ({error}). Nothing was uploaded.") from error
