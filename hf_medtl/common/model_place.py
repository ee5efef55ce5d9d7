"""The place of a model: a folder, the cache of the Hub, or the Hub."""

from pathlib import Path

from hf_medtl.common.text import nearest
from hf_medtl.errors import MedtlError

TIMEOUT = 10  # seconds for the Hub to answer


def nearest_folder(name: str | Path) -> str:
    """Return " Did you mean 'FOLDER'?" with the folder most similar to one that is missing, or "" if none is."""
    path = Path(name)
    beside = nearest(str(path), map(str, path.parent.glob("*/")))
    return beside or nearest(str(Path("runs", path.name)), map(str, Path("runs").glob("*/")))


def check_folder(name: str) -> None:
    """Raise MedtlError if the name of a model can only be that of a folder, and there is none; without network."""
    path = Path(name).expanduser()
    if path.exists():
        return
    local = path.is_absolute() or "\\" in name or name.startswith((".", "runs/")) or name.count("/") != 1
    if local or path.parent.is_dir():
        raise MedtlError(
            f"The folder {name} does not exist.{nearest_folder(path)} Give a folder, or an id on the Hub: OWNER/NAME."
        )


def check_place(name: str, revision: str | None = None) -> None:
    """Check that a model is a folder, in the cache or on the Hub, without the retries of its download.

    Args:
        name: folder or Hub id.
        revision: branch, tag or commit on the Hub.

    Raises:
        MedtlError: there is no such model, or the Hub can't be reached.
    """
    check_folder(name)
    if Path(name).expanduser().exists():
        return
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            return
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=TIMEOUT)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        if isinstance(error, GatedRepoError):
            raise MedtlError(
                f"{name} is gated: accept its terms at {ENDPOINT}/{name}, and log in with `hf auth login`."
            ) from error
        at = f" at {revision}" if isinstance(error, RevisionNotFoundError) else ""
        raise MedtlError(
            f"There is no folder and no model {name}{at} on the Hub, or the token has no access to it."
            f"{nearest_folder(name)} Check the spelling."
        ) from error
    except HfHubHTTPError:
        return  # loading tells why, after its retries
    except (HTTPError, OSError) as error:
        raise MedtlError(
            f"{name} is neither a folder nor in the cache, and the Hub can't be reached ({type(error).__name__})."
            f"{nearest_folder(name)} Check the spelling and the network."
        ) from error
