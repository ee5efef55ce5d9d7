"""Links in a folder that lead out of it."""

import os
from pathlib import Path

from hf_medtl.errors import MedtlError


def check_link(path: Path, folder: Path) -> None:
    """Raise MedtlError if a file or folder is a link to outside its folder: whoever made it could reach any file.

    A snapshot in the cache of the Hub consists of links to the files beside it, which are fine.

    Args:
        path: in `folder`; it need not exist.
        folder: of a model or a run; it may be a link itself.
    """
    real, base = path.resolve(), folder.resolve()
    of_hub = base.parent.name == "snapshots"  # its files are with those of the repository, or of all (Xet)
    inside = [base, *(parent / "blobs" for parent in base.parents[1:3] if of_hub)]
    if not any(real.is_relative_to(parent) for parent in inside):
        raise MedtlError(f"{path} leads to {real}, outside its folder. Copy the file itself into {folder}.")


def check_links(folder: Path) -> None:
    """Raise MedtlError if any file or folder below a folder is a link to outside, other than a checkpoint."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith("checkpoint-")]
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink():
                check_link(path, folder)
