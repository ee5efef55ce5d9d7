"""Datasets in memory: the table of all images (`Survey`), and the one split for training (`LoadedDataset`)."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import datasets
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hf_medtl.data.fingerprints import Fingerprint
from hf_medtl.data.images import encode_image, read_mask
from hf_medtl.data.specs import DatasetSpec, split_labels
from hf_medtl.data.splits import SPLITS

COLUMNS = ["image_id", "path", "label", "patient", "group", "split", "sha256"]


@dataclass(frozen=True)
class Survey:
    """All images of a dataset, before any are excluded for a split.

    Attributes:
        spec: Entry of `DATASETS`; for a user's own data with the labels discovered in it.
        root: Data folder.
        labels: Labels of the spec that have images, in its order.
        table: One row per readable image, sorted by `image_id`: image_id, path (relative to `root`), label (multiple
            labels separated by |, "" for none), patient, source, mask (relative to `root`, parts separated by |, ""
            for none), official (split in the archive: train, validation, test or ""), sha256, duplicate (number, equal
            for copies and near copies), group (name, equal for copies and for images of one patient, transitively).
        excluded: One row per excluded file: path, label, kind (a short category), reason.
        fingerprints: Fingerprint of each row of `table`.
    """

    spec: DatasetSpec
    root: Path
    labels: tuple[str, ...]
    table: pd.DataFrame
    excluded: pd.DataFrame
    fingerprints: list[Fingerprint]

    def select(self, kept: NDArray[np.bool_], **changes: Any) -> Self:
        """Return a copy with the rows `kept` (n,) of the table only, and with other fields changed."""
        table = changes.pop("table", self.table)
        return replace(
            self,
            table=table[kept].reset_index(drop=True),
            fingerprints=[item for item, keep in zip(self.fingerprints, kept, strict=True) if keep],
            **changes,
        )


@dataclass(frozen=True)
class LoadedDataset(Survey):
    """A dataset ready for training: `table` has a column split and only images that are in a split.

    Attributes:
        unused: Rows, as in `table`, that `subset.subsample_training` removed from the training split.
        rule: Description of how the images were split.
    """

    unused: pd.DataFrame | None = None
    rule: str = ""

    def with_unused(self) -> "LoadedDataset":
        """Return a copy including the unused training images, equal for all subsets of the same split."""
        if self.unused is None:
            return self
        return replace(self, table=pd.concat([self.table, self.unused]).sort_values("image_id", ignore_index=True))

    def rows(self, split: str) -> pd.DataFrame:
        """Return the rows of `table` that are in a split."""
        return self.table[self.table["split"] == split]

    @property
    def positive(self) -> str | None:
        """Label whose probability is thresholded; None unless there are two labels."""
        return self.spec.positive if len(self.labels) == 2 else None

    @property
    def positive_index(self) -> int | None:
        """Output index of the positive label."""
        return None if self.positive is None else self.labels.index(self.positive)

    def label_matrix(self) -> NDArray[np.bool_]:
        """Return (n, K), true where an image has a label."""
        cells = [split_labels(cell) for cell in self.table["label"]]
        return np.array([[label in cell for label in self.labels] for cell in cells]).reshape(len(cells), -1)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return split -> label -> number of images; also "(none)" for multilabel data, and "(all)" for masks, too."""
        matrix, counts = self.label_matrix(), {}
        for split in SPLITS:
            rows = matrix[self.table["split"] == split]
            counts[split] = dict(zip(self.labels, rows.sum(axis=0).tolist(), strict=True))
            if self.spec.multilabel:
                counts[split]["(none)"] = int((~rows.any(axis=1)).sum())
            if self.spec.multilabel or self.spec.is_segmentation:
                counts[split]["(all)"] = len(rows)
        return counts

    def features(self, decode: bool = True) -> datasets.Features:
        """Return the features of `splits`; without `decode` images are left as files."""
        label, text = datasets.ClassLabel(names=list(self.labels)), datasets.Value("string")
        return datasets.Features(
            image=datasets.Image(decode=decode),
            mask=datasets.Image(decode=decode),
            label=datasets.List(label) if self.spec.multilabel else label,
            patient=text,
            source=text,
            image_id=text,
        )

    def splits(self) -> datasets.DatasetDict:
        """Return a DatasetDict of train, validation and test.

        The columns are image, mask, label (a list for multilabel data), patient, source and image_id.
        """
        features = self.features(decode=False)  # `read_image` decodes them, and handles 16-bit images
        return datasets.DatasetDict(
            {
                name: datasets.Dataset.from_dict(
                    {
                        "image": [str(self.root / path) for path in rows["path"]],
                        "mask": [self._mask(cell) for cell in rows["mask"]],
                        "label": [list(split_labels(cell)) if self.spec.multilabel else cell for cell in rows["label"]],
                        **{column: list(rows[column]) for column in ("patient", "source", "image_id")},
                    },
                    features=features,
                )
                for name in SPLITS
                for rows in [self.table[self.table["split"] == name]]
            }
        )

    def _mask(self, cell: str) -> str | dict[str, Any] | None:
        """Return the path of a mask, or the bytes of a PNG that unites its parts."""
        parts = [self.root / part for part in cell.split("|")]
        if not cell or len(parts) == 1:
            return str(parts[0]) if cell else None
        return {"bytes": encode_image(read_mask(parts)), "path": None}
