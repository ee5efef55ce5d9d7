"""Names that must not be in what is published of a run: those in the paths and headers of its data."""

import functools
import logging
from collections.abc import Iterable
from pathlib import Path

from hf_medtl.common.run_folder import RunFolder, read_table
from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.identifiers import IDENTIFIERS, are_neutral
from hf_medtl.data.name_scan import check_text
from hf_medtl.data.person_names import names_in_headers, names_in_paths, split_words, squeeze
from hf_medtl.publish.neutral_files import are_names_public

logger = logging.getLogger("hf_medtl")
TABLES = ("splits.csv", "predictions.csv", "external.csv", "excluded.csv", IDENTIFIERS)


def private_names(folder: Path, publish_names: bool = False) -> dict[str, str]:
    """Return the names of `check_names` for a run; none if the file names of its data are public.

    Args:
        folder: The run folder. Headers are read from the files in its identifiers.csv, as far as they are still there.
        publish_names: As for `are_names_public`.
    """
    if are_names_public(RunFolder(folder), publish_names):
        return {}
    tables = [path for path in (folder / name for name in TABLES) if path.is_file()]
    return dict(_read_names(folder, tuple((path, path.stat().st_mtime_ns) for path in tables)))


@functools.lru_cache(maxsize=8)  # a push asks more than once
def _read_names(folder: Path, tables: tuple[tuple[Path, int], ...]) -> dict[str, str]:
    paths, files, public = dict[str, None](), list[str](), set[str]()
    for path, _ in tables:
        table = read_table(path)
        for column in {"image_id", "path"} & {*table}:
            if not are_neutral(table[column].tolist()):
                paths |= dict.fromkeys(table[column])
        public |= {label for cell in table.get("label", ()) for label in str(cell).split("|")}
        public |= set(map(str, table.get("source", ())))
        files += list(table.get("file", ()))
    results = RunFolder(folder).results
    public |= {str(results.get("dataset")), *map(str, results.get("labels", ()))}
    existing = [path for path in map(Path, files) if path.is_file()]
    total = len(files) or len(paths)  # an older run does not know where its files were
    if len(existing) < total:
        logger.warning(
            "%d of %d images are not where they were in training, so names in their headers are not looked for.",
            *(total - len(existing), total),
        )
    return names_in_headers(existing) | names_in_paths(paths, public)


def check_planned_card(card: str, datasets: Iterable[LoadedDataset | None]) -> None:
    """Check before training that a card has no names of files and folders, such as in its author's prose.

    Args:
        card: The card, with made-up results.
        datasets: The data sets of the run.

    Raises:
        MedtlError: It has one.
    """
    for loaded in datasets:
        if loaded and not loaded.spec.public:
            public = {*loaded.labels, *loaded.table["source"], loaded.spec.name, loaded.spec.title}
            check_text("The model card", card, names_in_paths(loaded.table["path"], public))


def allowed_words(words: Iterable[str] | None) -> frozenset[str]:
    """Return what --allow_word names, as `check_names` compares it."""
    return frozenset(key for word in words or () for key in (squeeze(word), *split_words(word)))
