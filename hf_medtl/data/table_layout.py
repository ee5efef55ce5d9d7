"""Tables of public datasets: which files they are, and official splits that text files list."""

import posixpath
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from hf_medtl.data.dataset_spec import DatasetSpec
from hf_medtl.data.listing import list_folder
from hf_medtl.errors import MedtlError


def find_tables(spec: DatasetSpec, root: Path, paths: Sequence[str]) -> list[str]:
    """Return the tables of a dataset in the uppermost folder that has any: archives may wrap or repeat them.

    Args:
        spec: The dataset, with `table`.
        root: Its data folder.
        paths: All files in it.

    Raises:
        MedtlError: There is none.
    """
    tables = [path for path in paths if re.fullmatch(str(spec.table), posixpath.basename(path))]
    if not tables:
        raise MedtlError(
            f"{root} does not look like {spec.title}: expected {spec.example}, found {list_folder(root)}. Set "
            "--data_dir to the unpacked download."
        )
    uppermost = posixpath.dirname(min(tables, key=lambda path: path.count("/")))
    return [path for path in tables if posixpath.dirname(path) == uppermost]


def read_split_lists(spec: DatasetSpec, root: Path, paths: Sequence[str]) -> dict[str, str]:
    """Return file name -> official split, as the text files of `spec.split_lists` have them; empty without the files.

    Args:
        spec: The dataset.
        root: Its data folder.
        paths: All files in it.
    """
    splits: dict[str, str] = {}
    for split, name in spec.split_lists.items():
        for path in [path for path in paths if posixpath.basename(path) == name][:1]:
            lines = (root / path).read_text(encoding="utf-8").split()
            splits |= {PurePosixPath(line).name: split for line in lines}
    return splits
