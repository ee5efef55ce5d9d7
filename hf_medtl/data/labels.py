"""Labels discovered in folders and tables."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hf_medtl.common.text import abbreviate
from hf_medtl.data.specs import DatasetSpec, split_labels
from hf_medtl.errors import MedtlError

# Labels of the first outputs. Checkpoints keep the order, so this stays as it is: `positive_label.py` knows more names.
FIRST_LABELS = r"(?i)(no|non|not|without)([^a-z].*)?|normal.*|negative|healthy|benign|control|0+"
# Cells of multilabel data that mean "no label"; NIH ChestX-ray14 has "No Finding".
NO_FINDING = r"(?i)no[ _-]?findings?|none"


def discover_labels(spec: DatasetSpec, path: Path, values: Sequence[str], multilabel: bool = False) -> DatasetSpec:
    """Return the spec with the labels found in the data, unless it defines its own.

    Args:
        spec: The dataset.
        path: File or folder with the labels, for errors.
        values: Labels of the images as the data spell them.
        multilabel: True if the values can hold any number of labels, separated by |.

    Raises:
        MedtlError: Fewer than two labels, or labels that differ only in spelling, folders that don't match the labels
            of the spec, or (multilabel) images with both a label and "no finding".
    """
    if multilabel and not spec.labels:
        spec = replace(spec, several=True)
        values = [cell for cell in values if not cell.startswith("?")]
        both = [
            cell
            for cell in values
            if len(split_labels(cell)) > 1 and any(re.fullmatch(NO_FINDING, n) for n in split_labels(cell))
        ]
        if both:
            raise MedtlError(
                f"{path}: {len(both)} images have a label and no finding: {abbreviate(both, 3)}. Correct the table."
            )
        values = [name for cell in values for name in split_labels(cell) if not re.fullmatch(NO_FINDING, name)]
    names = sorted({*values} - {""}, key=lambda name: (not re.fullmatch(FIRST_LABELS, name), name))
    if spec.labels:
        if spec.reader == "folders" and sorted(filter(None, map(spec.map_label, names))) != sorted(spec.labels):
            raise MedtlError(
                f"{path}: expected a folder for each of {', '.join(spec.labels)} ({spec.example}), found "
                f"{', '.join(names)}, which can't be matched to the labels of {spec.title}. Rename the folders, or use "
                "--dataset imagefolder, which takes folder names as labels."
            )
        return spec
    if any("|" in name for name in names):
        raise MedtlError(
            f"{path}: folder names can't contain a |, found {abbreviate(names)}. Put multiple labels per image into a "
            "metadata.csv with the columns file_name and label."
        )
    if len(names) < 2 and not spec.is_segmentation:
        raise MedtlError(f"{path}: a classifier needs at least two labels, found {', '.join(names) or 'none'}.")
    _check_spelling(path, names)
    return replace(spec, labels=tuple(names), values={re.escape(name): name for name in names})


def _check_spelling(path: Path, names: Sequence[str]) -> None:
    """Refuse labels that differ only in case, spaces, - or _, or in how their accents are encoded.

    Raises:
        MedtlError: There are such labels.
    """
    spellings = defaultdict(list)
    for name in names:
        shown = "".join(sign for sign in name if unicodedata.category(sign) != "Cf")  # not joiners and marks
        text = unicodedata.normalize("NFKC", shown).casefold().strip(" _")
        spellings[re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", "", text)].append(name)
    same = [sorted(group) for group in spellings.values() if len(group) > 1]
    if same:
        groups = "; ".join(" and ".join(map(repr, group)) for group in same)
        raise MedtlError(
            f"{path}: some labels differ only in case, spaces, - or _: {groups}. They would be learned as different "
            "labels. Spell each in one way, in all splits."
        )
