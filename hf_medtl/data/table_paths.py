"""Files that a table names: paths from another machine, in another case, or without their extension."""

import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from hf_medtl.data.images import EXTENSIONS

Parts = tuple[str, ...]


class TablePaths:
    r"""The files of a data folder, to be found by what the cells of a table say.

    A cell is a path relative to the table, or else a file is found that the cell can only mean: one with the same name
    but for upper and lower case and the extension, whose path ends as the cell does or the other way round. So
    `ISIC_0001` is `part_1/ISIC_0001.jpg`, `C:\data\train\1.png` is `train/1.png`, and `7` is `007.png`.
    """

    def __init__(self, root: Path, paths: Sequence[str]) -> None:
        """Index the files.

        Args:
            root: The data folder.
            paths: Its files, as POSIX paths below it.
        """
        self.root = root
        self.paths = set(paths)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_number: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            if path.lower().endswith(EXTENSIONS) or re.fullmatch(r"(\.\d+)?", PurePosixPath(path).suffix):
                self._by_name[_plain(path)[-1]].append(path)
                self._by_number[_plain(path)[-1].lstrip("0")].append(path)

    def find(self, cell: str, folder: str, mask: bool = False) -> str:
        """Return the path of the file that a cell means, below the data folder; "" if there is none, or more than one.

        Args:
            cell: What the table says.
            folder: Folder of the table, relative to the data folder.
            mask: True if it names a mask, false for an image.
        """
        address = re.match(r"\w+://", cell)
        decoded = unquote(cell.partition("?")[0] if address else cell)
        numbered = self._by_number[cell.lstrip("0")] if cell.isdecimal() else []  # spreadsheets remove leading zeros
        return (
            self._find(cell, folder, mask)
            or (decoded != cell and self._find(decoded, folder, mask))
            or (numbered[0] if len(numbered) == 1 else "")
        )

    def _find(self, cell: str, folder: str, mask: bool) -> str:
        """Return the file of a cell without decoding it, or adding zeros to it; see `find`."""
        path = self.join(cell, folder)
        if path in self.paths:
            return path
        if exact := self._find_end(cell, folder):
            return exact
        cell_parts = _plain(path)
        if not cell_parts:
            return ""
        below = len(_plain(folder)) if folder not in ("", ".") else 0
        candidates = []
        for candidate in self._by_name.get(cell_parts[-1], ()):
            parts = _plain(candidate)
            inside = parts[below:]
            if parts[-len(cell_parts) :] == cell_parts or (inside and cell_parts[-len(inside) :] == inside):
                candidates.append(candidate)
        ranks = {
            candidate: (
                PurePosixPath(candidate).name.lower() == PurePosixPath(path).name.lower(),
                ("mask" in candidate.lower()) is mask,
                candidate.count("/") if len(_plain(candidate)) <= len(cell_parts) else -1,
            )
            for candidate in candidates
        }
        best = [candidate for candidate in candidates if ranks[candidate] == max(ranks.values())]
        same = {candidate.lower() for candidate in best}  # archives repeat folders with a name in another case
        return best[0] if len(same) == 1 else ""

    def _find_end(self, cell: str, folder: str) -> str:
        """Return the file whose path is an end of the cell, with a folder at least, from `folder` or one above it."""
        parts = cell.replace("\\", "/").split("/")
        above = folder.split("/") if folder not in ("", ".") else []
        for start in range(len(parts) - 1):
            end = "/".join(parts[start:])
            for depth in range(len(above), -1, -1):
                path = posixpath.normpath(posixpath.join(*above[:depth], end))
                if path in self.paths:
                    return path
        return ""

    def join(self, cell: str, folder: str) -> str:
        """Return the path that a cell states, relative to the data folder if it is inside, or else absolute or `..`."""
        text = cell if "\\" not in cell or cell in self.paths else cell.replace("\\", "/")
        path = posixpath.normpath(text if re.match(r"[a-zA-Z]:/", text) else posixpath.join(folder, text))
        if Path(path).is_absolute() or path.startswith(".."):
            for root in (self.root.absolute(), self.root.resolve()):
                whole = Path(os.path.normpath(root / path))
                if whole.is_relative_to(root):
                    return whole.relative_to(root).as_posix()
        return path

    def is_outside(self, path: str) -> bool:
        """True for a path, from `join`, of an existing file outside the data folder."""
        leaves = path.startswith("..") or Path(path).is_absolute()
        return leaves and os.path.exists(self.root / path)  # noqa: PTH110 - false for a path that no system takes


def _plain(path: str) -> Parts:
    """Return the parts of a path in lower case, without a drive and without the extension of an image."""
    parts = [part for part in re.sub(r"^[a-zA-Z]:/", "", path.lower()).split("/") if part not in ("", ".")]
    if parts:
        longest = max((end for end in EXTENSIONS if parts[-1].endswith(end)), key=len, default="")
        parts[-1] = parts[-1].removesuffix(longest)
    return tuple(parts)
