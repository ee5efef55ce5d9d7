"""Checks of a model's files before anything is loaded from them, since anybody can publish a model.

Loading must run no code, unpickle nothing, open no other file, call no other repository, and take no more memory than
the weights explain. Libraries do some of that if a configuration asks for it: timm unpickles a `checkpoint_path`,
`transformers` downloads a `backbone`, an adapter's base model and attention kernels.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig
from transformers.utils.hub import cached_file

from hf_medtl.common.links import check_link
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.errors import MedtlError
from hf_medtl.models.ensemble import TIMM_ARGUMENTS
from hf_medtl.models.processor import LUNG_MODEL, MAX_SIDE
from hf_medtl.models.size_limit import limited_size
from hf_medtl.models.smp import SMP_ARGUMENTS
from hf_medtl.models.weight_files import check_header, check_hub_weights, weight_files

MAX_LABELS = 100_000  # ImageNet-21k has 21,843
MAX_LAYERS = 2_000
MAX_NUMBER = 2**24  # of anything else that a configuration counts, such as a vocabulary
MAX_JSON = 64 * 2**20  # bytes
SETTINGS = ("preprocessor_config.json", "processor_config.json")
INDEX = "*.safetensors.index.json"
CHECKED = ("config.json", *SETTINGS, "adapter_config.json", INDEX)
LAYERS = re.compile(r"layers|depth|blocks|stages|convs|convolutions|repeats")
NUMBERS = re.compile(r"num_labels|num_classes")
SIDES = re.compile(r"image_size|img_size|input_size|crop_size|pad_size")
NAME = re.compile(r"[\w.\-]+")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
LABELS = ("id2label", "label2id", "label_names", "positive_label", "wording")

_checked: set[tuple[str | Path, str | None, bool]] = set()  # name, commit and trust: a commit never changes


def check_model(name: str | Path, revision: str | None = None, trust_remote_code: bool = False) -> str | None:
    """Check everything in a folder or Hub repository that decides what loading it does, before weights are downloaded.

    Args:
        name: folder or Hub id.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: settings of the repository's own classes are not checked, only sizes and files.

    Returns:
        The revision to load: of a Hub id the commit that was checked.

    Raises:
        MedtlError: the files ask for what no model needs, or for more memory than their weights explain.
        OSError: there is no such model.
    """
    if Path(name).is_dir():
        folder = Path(name)
        RunFolder(folder).check_has_model()
    elif (name, revision, trust_remote_code) in _checked:
        return revision
    else:
        try:
            patterns = [*CHECKED, *(f"{LUNG_MODEL}/{file}" for file in CHECKED)]
            folder = Path(snapshot_download(str(name), revision=revision, allow_patterns=patterns))
        except (OSError, ValueError):
            cached_file(name, "config.json", revision=revision)  # its errors say more
            raise
        revision = folder.name
    _check_folder(folder, str(name), trust_remote_code)
    lungs = folder / LUNG_MODEL
    if lungs.is_dir():
        _check_folder(lungs, f"{name}/{LUNG_MODEL}", trust_remote_code)
    if not Path(name).is_dir():
        lung_files = [f"{LUNG_MODEL}/{file}" for file in weight_files(_finder(lungs))] if lungs.is_dir() else []
        check_hub_weights(str(name), folder.name, [*weight_files(_finder(folder)), *lung_files])
        _checked.add((name, revision, trust_remote_code))
    return revision


def _finder(folder: Path) -> Callable[[str], Path | None]:
    return lambda name: folder / name if (folder / name).is_file() else None


def load_config(name: str | Path, **hub: Any) -> PreTrainedConfig:
    """Return the configuration of a folder or Hub id, after `check_model`.

    Args:
        name: folder or Hub id.
        hub: revision and trust_remote_code.

    Raises:
        MedtlError: as `check_model`.
        OSError, ValueError, KeyError, RuntimeError: there is no such configuration.
    """
    hub = {"revision": None, "trust_remote_code": False} | hub
    hub["revision"] = check_model(name, **hub)
    with plain_errors():
        return AutoConfig.from_pretrained(name, **hub)


def load_processor(name: str | Path, **hub: Any) -> Any:
    """Return the image processor of a folder or Hub id whose files `check_model` has checked.

    Args:
        name: folder or Hub id.
        hub: revision, trust_remote_code and the like.

    Raises:
        OSError, ValueError, KeyError, RuntimeError: there is no such processor.
    """
    with plain_errors(), limited_size(name) if Path(name).is_dir() else nullcontext():  # it may have a model of its own
        return AutoImageProcessor.from_pretrained(name, **{"trust_remote_code": False} | hub)


def _check_folder(folder: Path, source: str, trusted: bool) -> None:
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or path.name == LUNG_MODEL:
            check_link(path, folder)
    if (folder / "adapter_config.json").is_file():
        raise MedtlError(
            f"{source} holds an adapter (adapter_config.json), which would load another model as well. Merge it into "
            "its model and save that."
        )
    if (folder / "config.json").is_file():
        check_config(read_settings(folder / "config.json"), source, trusted)
    for file in SETTINGS:
        if (folder / file).is_file():
            settings = read_settings(folder / file)
            nested = settings.get("image_processor")
            check_processor(nested if isinstance(nested, dict) else settings, f"{source}/{file}")
    _check_index(folder, source)
    for path in sorted(folder.glob("*.safetensors")):
        check_header(path)


def read_settings(path: Path) -> dict[str, Any]:
    """Read a JSON object of moderate size.

    Raises:
        MedtlError: the file is damaged, too large, nested too deeply, or holds something else.
    """
    if (size := path.stat().st_size) > MAX_JSON:
        raise MedtlError(f"{path} has {size} bytes; settings have {MAX_JSON} at most. Use another model.")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise MedtlError(f"{path} is damaged ({type(error).__name__}: {error}). Download it again.") from error
    if not isinstance(settings, dict):
        raise MedtlError(f"{path} holds no settings: expected a JSON object, found {type(settings).__name__}.")
    return settings


def check_config(config: Mapping[str, Any], source: str, trusted: bool = False) -> None:
    """Raise MedtlError if a model's configuration asks for code, files, downloads or absurd sizes.

    Args:
        config: content of config.json.
        source: folder or id, for the message.
        trusted: check sizes alone.
    """
    names = config.get("id2label")
    if names is not None and not (isinstance(names, dict) and all(str(key).isdecimal() for key in names)):
        raise MedtlError(f"{source}: id2label in config.json must give a label for each number. Use another model.")
    if not trusted and config.get("backbone") is not None and config.get("backbone_config") is None:
        raise MedtlError(f"{source}: backbone in config.json would load another model. Use one with backbone_config.")
    for path, key, value in _walk(config):
        where = f"{source}: {_printable('.'.join(path))} in config.json"
        _check_value(where, key, value)
        if path[0] in LABELS:
            _check_label(where, key, value)
        if not trusted and value is not None:
            _check_request(where, key, value)


def _check_value(where: str, key: str, value: Any) -> None:
    """Raise MedtlError for numbers that are not finite or absurd, and for text that could change a terminal."""
    if isinstance(value, float) and not math.isfinite(value):
        raise MedtlError(f"{where} is {value}; expected a finite number. Use another model.")
    numbers = [x for x in value if type(x) is int] if isinstance(value, list) else [value] if type(value) is int else []
    total = sum(map(abs, numbers)) if LAYERS.search(key) else max(map(abs, numbers), default=0)
    limits = {LAYERS: MAX_LAYERS, SIDES: MAX_SIDE, NUMBERS: MAX_LABELS}
    limit = next((limit for keys, limit in limits.items() if keys.search(key)), MAX_NUMBER)
    if total > limit:
        raise MedtlError(f"{where} is {total}; the most that is supported is {limit}. Use another model.")
    if isinstance(value, list | dict) and len(value) > MAX_LABELS:
        raise MedtlError(f"{where} has {len(value)} entries; the most are {MAX_LABELS}. Use another model.")
    if any(isinstance(text, str) and CONTROL.search(text) for text in (key, value)):
        raise MedtlError(f"{where} has control characters. Use another model.")


def _check_label(where: str, key: str, value: Any) -> None:
    if any(isinstance(text, str) and re.search(r"[\r\n\t]", text) for text in (key, value)):
        raise MedtlError(f"{where} has line breaks or tabs. Rename the label.")


def _check_request(where: str, key: str, value: Any) -> None:
    """Raise MedtlError for a setting with which a library would open, download or run something else."""
    if key in ("model_args", "backbone_kwargs"):
        arguments = value if isinstance(value, dict) else {str(value): None}
        if unknown := sorted(set(arguments) - TIMM_ARGUMENTS - SMP_ARGUMENTS):
            named = ", ".join(_printable(repr(name)) for name in unknown[:3])
            raise MedtlError(
                f"{where} has {named}, which is no size or rate of a network and could load other files. Remove it, or "
                "use another model."
            )
    names = key in ("architecture", "encoder_name", "backbone") and not NAME.fullmatch(str(value))
    kernels = key in ("attn_implementation", "_attn_implementation", "experts_implementation") and "/" in str(value)
    weights = key == "transformers_weights" and not re.fullmatch(r"[\w\-]+\.safetensors(\.index\.json)?", str(value))
    if names or kernels or weights or (key == "use_pretrained_backbone" and value):
        raise MedtlError(f"{where} is {_printable(repr(value))}, which would load something else. Use another model.")
    if key == "quantization_config":
        raise MedtlError(f"{where}: quantised models are not supported. Use one with 16 or 32 bits.")


def check_processor(settings: Mapping[str, Any], source: str) -> None:
    """Raise MedtlError if settings of an image processor are not finite or would make huge images.

    Args:
        settings: content of preprocessor_config.json.
        source: file, for the message.
    """
    for path, key, value in _walk(settings):
        where = f"{source}: {_printable('.'.join(path))}"
        _check_value(where, key, value)
        if isinstance(value, int | float) and abs(value) > MAX_SIDE and key not in ("min_pixels", "max_pixels"):
            raise MedtlError(f"{where} is {value}; the most that is supported is {MAX_SIDE} pixels.")
        if isinstance(value, list | dict) and len(value) > 1000:
            raise MedtlError(f"{where} has {len(value)} entries, which no image processor has.")


def _check_index(folder: Path, source: str) -> None:
    """Raise MedtlError if an index of weights in shards names files elsewhere."""
    for path in sorted(folder.glob(INDEX)):
        weight_map = read_settings(path).get("weight_map", {})
        for name in weight_map.values() if isinstance(weight_map, dict) else [None]:
            if not isinstance(name, str) or not NAME.fullmatch(name) or not name.endswith(".safetensors"):
                raise MedtlError(
                    f"{source}/{path.name} names {_printable(repr(name))}; expected names of safetensors files in the "
                    "same folder. Use another model."
                )


def _printable(text: str) -> str:
    """Return text that fits into a line of a terminal and does not change it."""
    text = text if len(text) <= 100 else f"{text[:100]} ..."
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _walk(settings: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """Yield path, key and value of everything in a JSON object; the entries of a list have the key of the list."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((str(key),), value) for key, value in settings.items()]
    while waiting:
        path, value = waiting.pop()
        yield path, path[-1], value
        if isinstance(value, dict):
            waiting += [((*path, str(key)), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(path, inner) for inner in value if isinstance(inner, dict | list | str | float)]


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what libraries raise at senseless settings, such as TypeError, into ValueError, which loaders expect."""
    try:
        yield
    except (MedtlError, OSError, ValueError, KeyError, RuntimeError):
        raise
    except Exception as error:  # of any library, at any value
        raise ValueError(f"{type(error).__name__}: {error}".strip()) from error
