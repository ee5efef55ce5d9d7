"""Hub Collections: the models of a cross-validation or a study, each in its own repository."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, RepoUrl

from hf_medtl.common.files import read_json
from hf_medtl.common.hub_errors import hub_errors, with_retries
from hf_medtl.common.run_folder import RunFolder


def publishable_models(folder: Path) -> dict[str, Path]:
    """Return the run folders to publish, by the suffix of their repository's name.

    A run is one model. A cross-validation is one for each fold. A study is one for each arm: the cell with the largest
    fraction of the training images and, among these, the lowest seed. Not the cell with the best results: choosing by
    results on test images would make them optimistic. Arms of --strategy knn have no model and are left out.

    Args:
        folder: Folder of a finished run, a cross-validation or a study.

    Raises:
        MedtlError: results.json or study.json can't be read.
    """
    study = folder / "study.json"
    if cells := read_json(study).get("cells") if study.is_file() else None:
        models: dict[str, Path] = {}
        for cell in sorted(cells, key=lambda cell: (-cell["percent"], cell["seed"])):
            models.setdefault(cell["arm"], folder / cell["folder"])
        arms = [arm for arm, run in models.items() if not RunFolder(run).only_measures] or [*models]
        return {f"-{'-'.join(re.findall('[A-Za-z0-9_.]+', arm))}": models[arm] for arm in arms}
    return {f"-{run.path.name}": run.path for run in RunFolder(folder).folds} or {"": folder}


def collect(title: str, urls: Sequence[str], *, private: bool = False) -> str:
    """Add published models to the Collection of this title, created if it does not exist; return its URL.

    Args:
        title: Title of the Collection.
        urls: URLs of the models, all of one owner.
        private: Make a new Collection private.

    Raises:
        MedtlError: The Hub refuses or can't be reached.
    """
    api, names = HfApi(), [RepoUrl(url).repo_id for url in urls]
    advice = "The models are uploaded; repeat the command to finish."
    with hub_errors(f"The Collection {title!r} could not be created", advice):
        owner = names[0].partition("/")[0]
        collection = with_retries(
            lambda: api.create_collection(title, namespace=owner, private=private, exists_ok=True)
        )
        for name in names:
            with_retries(partial(api.add_collection_item, collection.slug, name, "model", exists_ok=True))
    return collection.url
