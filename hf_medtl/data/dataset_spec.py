"""DatasetSpec: where the images, labels, masks and patients of a dataset are, and what is known about it."""

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath

SPLIT_FOLDERS = {"train": "train", "validation": "validation", "test": "test"}  # `official` of folders and tables


@dataclass(frozen=True)
class DatasetSpec:
    """Description of a dataset: file layout, labels, masks, patients, origin and known problems.

    Attributes:
        name: Key in `DATASETS` and value of `--dataset`.
        title: Human-readable name.
        example: Example paths that match the layout, for error messages.
        task: `transformers` pipeline task of a model trained on the dataset.
        reader: File layout: "paths" match a pattern, "folders" are discovered, "table" lists files (`readers.py`).
        labels: Labels in the order of the model's outputs; () if they are discovered in the data.
        several: True for multilabel data, where an image has any number of the labels, including none.
        values: Regular expression of a label in the data -> label; the first match wins.
        positive: Label whose probability is thresholded; None with more than two labels or multilabel data.
        positive_source: How it was chosen: a key of `positive_label.SOURCES`.
        pattern: Regular expression of an image's POSIX path below a root. Group `label` is the label; optional groups
            `split` and `source` are the official split and the source.
        roots: Folders below the data folder to search. Only the first one with the most labels is read, because
            archives often contain the same images twice.
        official: Split name in the archive -> our split name, if the official split is worth keeping.
        patient: Regular expression of the start of a file name or, with a /, of a part of the path, whose first group
            is the patient; None if patients are unknown.
        mask_shows: Name of the structure inside the masks; "mask" if unknown.
        masks: Patterns of mask paths below the data folder with the image's {folder}, {name} and {stem}; the first
            one that exists is used. Parts separated by | (such as left and right lung) form one mask.
        table: Regular expression of the name of the table for the "table" reader; None if the user specifies it. Tables
            called train.csv and valid.csv are read together, and their names are the official splits.
        split_lists: Official split -> name of a text file with the names of its images.
        columns: Our column (file_name, label, patient, source, mask, split) -> column of the table, or format string
            over its columns such as `images/{filename}`. Labels can be columns of 0 and 1 whose names they are, joined
            by +: `Edema+Mass`.
        uncertain: What -1 (uncertain) means in columns of 0 and 1: "exclude" (the image), "negative" or "positive".
        keep: Table column -> regular expression; rows that do not match are dropped.
        copies_of: Datasets whose images it contains too small or too cropped to be recognized. Neither dataset may be
            used to test a model of the other.
        kaggle: `owner/name` on Kaggle.
        homepage: Web page of a dataset that can't be downloaded without an account or an agreement.
        phantom: Kind of synthetic images (`phantoms.py`); None for real data.
        public: True if anybody can get the images under the same file names, which then need not be hidden.
        counts: Label -> number of files in the complete dataset.
        images: Number of images in the complete dataset, if it is not the sum of the counts.
        licence: Licence identifier as on the Hub, or "unknown".
        citation: Reference to cite.
        problems: Known limitations that affect how results should be interpreted.
        notes: How the reader understood a table, as sentences for the plan: columns, merged rows, uncertain labels.
    """

    name: str
    title: str
    example: str
    task: str = "image-classification"
    reader: str = "paths"
    labels: tuple[str, ...] = ()
    several: bool = False
    values: dict[str, str] = field(default_factory=dict)
    positive: str | None = None
    positive_source: str = "dataset"
    pattern: str = ""
    roots: tuple[str, ...] = ("",)
    official: dict[str, str] = field(default_factory=dict)
    patient: str | None = None
    mask_shows: str = "mask"
    masks: tuple[str, ...] = ()
    table: str | None = None
    split_lists: dict[str, str] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    uncertain: str = "exclude"
    keep: dict[str, str] = field(default_factory=dict)
    copies_of: tuple[str, ...] = ()
    kaggle: str | None = None
    homepage: str = ""
    phantom: str | None = None
    public: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    images: int = 0
    licence: str = "unknown"
    citation: str = ""
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def multilabel(self) -> bool:
        """True if an image can have any number of the labels; the constructor field is called `several`."""
        return self.several

    @property
    def is_segmentation(self) -> bool:
        """True if a model learns the masks: every image then needs one, and labels only describe the image."""
        return self.task == "image-segmentation"

    @property
    def id(self) -> str:
        """Dataset name in model cards: the Kaggle slug, or `name` if there is none."""
        return self.kaggle or self.name

    @property
    def hub_id(self) -> str:
        """Repository id on the Hub; "" for datasets from elsewhere."""
        return self.name if "/" in self.name else ""

    @property
    def url(self) -> str:
        """Web page of the dataset; "" for a user's own data."""
        if self.kaggle:
            return f"https://www.kaggle.com/datasets/{self.kaggle}"
        return f"https://huggingface.co/datasets/{self.hub_id}" if self.hub_id else self.homepage

    @property
    def size(self) -> int:
        """Number of images in the complete dataset; 0 if unknown."""
        return self.images or sum(self.counts.values())

    def map_label(self, value: str) -> str | None:
        """Return the label for `value`, as the data spell it; None if it matches no label.

        Multilabel values give the matching labels in the order of `labels`, joined by |, or "" if none matches.
        """
        if self.several:
            mapped = {self._map_one(part) for part in split_labels(value)}
            return "|".join(label for label in self.labels if label in mapped)
        return self._map_one(value)

    def _map_one(self, value: str) -> str | None:
        return next((label for rule, label in self.values.items() if re.fullmatch(rule, value)), None)

    def parse_patient(self, path: str) -> str:
        """Return the patient encoded in a path; "" if unknown."""
        if self.patient is None:
            return ""
        whole = "/" in self.patient
        match = re.search(self.patient, path) if whole else re.match(self.patient, PurePosixPath(path).name)
        return match.group(1) if match else ""


def split_labels(cell: str) -> tuple[str, ...]:
    """Return the labels in a cell of the column `label`: one, or any number separated by |."""
    return tuple(dict.fromkeys(part for part in cell.split("|") if part))
