"""The command `hf-medtl train`, and the command line of recipes; `hf_medtl.runs.train` does the work."""

import gc
import logging
import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import typer

from hf_medtl.common.messages import given_arguments, show_messages, start_logging
from hf_medtl.common.progress import in_notebook
from hf_medtl.common.system import explain_shortage, wait_passively
from hf_medtl.common.text import nearest
from hf_medtl.data.specs import DATASETS, check_dataset_name
from hf_medtl.errors import Interrupted, MedtlError
from hf_medtl.training.arguments import check_arguments
from hf_medtl.training.command_line import read_options
from hf_medtl.training.flags import all_flags
from hf_medtl.training.options import OWN_NETWORKS
from hf_medtl.training.presets import PRESETS

logger = logging.getLogger("hf_medtl")

INPUTS = ("data_dir", "external_data_dir", "model_card", "splits")
HELP = ("_h", "__help", "__help_all")  # is shown afterwards, with these defaults
CONTEXT: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def train(context: typer.Context) -> None:
    """Train a model: hf-medtl train PRESET, or recipe.yaml, or --data_dir DIR. Without arguments, list the presets."""
    words = list(context.args)
    if not words:
        print(list_presets())
        return
    name = "" if words[0].startswith("-") else words.pop(0)
    sys.argv[0] = f"hf-medtl train {name}".strip()
    if name in PRESETS:
        main(PRESETS[name], words)
    elif Path(name).suffix.lower() in (".yaml", ".yml"):
        main({}, ["--config", name, *words])
    elif name:
        raise MedtlError(
            f"There is no preset {name!r}.{nearest(name, PRESETS)} Give one of hf-medtl train's list, a file "
            "recipe.yaml, or --data_dir DIR with your own data."
        )
    else:
        main(choose_defaults(words), words)


def list_presets() -> str:
    """Return a table of the presets and what else `hf-medtl train` takes."""
    width = max(map(len, PRESETS))
    lines = [
        f"  {name:{width}}  {DATASETS[values['dataset']].title}, {values['model_name_or_path']}"
        for name, values in PRESETS.items()
    ]
    return "\n".join(
        (
            "Give a preset, the recipe.yaml of a run, or your own data, and any option of hf-medtl train --help:",
            "",
            *lines,
            "",
            "  hf-medtl train demo",
            "  hf-medtl train vit_brain --num_train_epochs 5",
            "  hf-medtl train --data_dir DIR                         a folder of images for each label",
            "  hf-medtl train --data_dir table.csv                   a table of image files and labels",
            "  hf-medtl train runs/demo/recipe.yaml --output_dir runs/again",
        )
    )


def choose_defaults(words: Sequence[str]) -> dict[str, Any]:
    """Return the defaults of a command without preset: those for own data, unless --config is given.

    With another model only what says which data are learned: rates and sizes are for the preset's model. Random
    weights, also those of a new head, need a higher learning rate and more epochs than the defaults of all options.
    """
    values, *_ = read_options({}, [word for word in words if word.replace("-", "_") not in HELP])
    given = {word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")}
    if "config" in given:
        return {}
    spec = DATASETS.get(values["dataset"], DATASETS["imagefolder"]) if "dataset" in given else DATASETS["imagefolder"]
    of_masks = "segmentation" in (values["task"] or spec.task)
    defaults, model = PRESETS["own_masks" if of_masks else "own_images"], values["model_name_or_path"]
    classifiers, decoders = OWN_NETWORKS[:3], OWN_NETWORKS[3:]
    if "model_name_or_path" in given and model not in (decoders if of_masks else (defaults["model_name_or_path"],)):
        defaults = {key: defaults[key] for key in ("dataset", "task", "output_dir") if key in defaults}
        if values["from_scratch"] or model in classifiers:
            defaults |= {"learning_rate": 5e-4, "num_train_epochs": 40, "early_stopping_patience": 10}
        elif "learning_rate" not in given:
            defaults |= {"head_learning_rate": 1e-3, "num_train_epochs": 20}
    path = Path(values["data_dir"] or "").expanduser()
    return {**defaults, "dataset": "table"} if path.is_file() else dict(defaults)


def main(defaults: Mapping[str, Any] | None = None, argv: Sequence[str] | None = None) -> None:
    """Run a recipe from the command line; print errors that the user can correct without a traceback.

    Exit codes: 0 finished, 1 an error that the message explains, 130 interrupted with Ctrl-C, 143 by SIGTERM, as
    schedulers send it; after both --resume_from_checkpoint auto goes on. `accelerate launch` with more than one process
    exits with 1 whatever the codes of the processes. In a notebook errors are raised instead.

    Args:
        defaults: Option -> value, which the command line overrides.
        argv: Command-line flags; by default those of the running script, and none in a notebook.

    Raises:
        MedtlError: In a notebook, what the user has to change.
        Interrupted: In a notebook, after its kernel was interrupted.
    """
    is_main = os.environ.get("RANK", "0") == "0"
    start_logging()
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own: no message twice
    show_messages(logging.INFO if is_main else logging.ERROR)
    wait_passively()
    if os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ and "RANK" not in os.environ:
        # accelerate 1.15 sets the address for several processes, then starts one.
        logger.warning(
            "accelerate launch --cpu started a single process although more were asked for. For several on a CPU:\n"
            "  accelerate launch --multi_gpu --num_machines 1 --num_processes N RECIPE --use_cpu true"
        )
    code: str | int | None = 1
    try:
        argv = given_arguments() if argv is None else argv
        check_early(read_options(defaults, argv)[0])
        from hf_medtl.runs.train import run  # after the checks, because it imports torch
        from hf_medtl.training.recipe import Recipe

        run(Recipe.from_cli(defaults, argv))
        code = None
    except (Interrupted, KeyboardInterrupt) as stop:
        if in_notebook():
            raise
        if is_main:
            print(f"\nInterrupted. {stop}", file=sys.stderr)
        code = 128 + (stop.signal if isinstance(stop, Interrupted) else signal.SIGINT)
    except Exception as error:
        if "TORCHELASTIC_ERROR_FILE" in os.environ:  # of the launcher, which shows it with the rank
            from torch.distributed.elastic.multiprocessing.errors import get_error_handler

            get_error_handler().record_exception(error)
        shortage = explain_shortage(error)
        if not (shortage or isinstance(error, MedtlError)):
            raise
        if in_notebook():
            raise error from None
        distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
        code = f"Error{' in process ' + os.environ['RANK'] if distributed else ''}: {shortage or error}"
    _leave_process_group(code)
    if code is not None:
        sys.exit(code)


class _Values(SimpleNamespace):
    """Values of all options, with the method of a recipe that `check_arguments` needs."""

    def refuse(self, options: Iterable[str], why: str) -> None:
        flags = all_flags()
        given = [f"--{option}" for option in options if getattr(self, option) != flags[option].default]
        if given:
            raise MedtlError(f"{', '.join(given)}: {why}")


def check_early(values: Mapping[str, Any]) -> None:
    """Check what can be checked without importing torch.

    Args:
        values: Value of each option.

    Raises:
        MedtlError: An invalid value, the name of a data set that does not exist, or a missing file.
    """
    check_arguments(_Values(**values))
    for option in ("dataset", "external_dataset"):
        if values[option] is not None:
            check_dataset_name(values[option])
    for option in INPUTS:
        if values[option] and not (path := Path(values[option]).expanduser()).exists():
            raise MedtlError(f"--{option} {path} does not exist. Check the path; it is relative to {Path.cwd()}.")


def _leave_process_group(code: str | int | None) -> None:
    torch = sys.modules.get("torch")
    group = torch.distributed.get_backend() if torch and torch.distributed.is_initialized() else None
    if torch and group and (code is None or (group == "gloo" and not isinstance(code, str))):
        # Gloo's threads, which may abort the process at the interpreter's end (pytorch#179291), end with the group's
        # last reference. The trainer has one, and is part of a cycle; an exception's traceback would have one, too.
        torch.distributed.destroy_process_group()
        gc.collect()
    # After an error the group is left alone. NCCL would wait for the others, and they would notice and fail before this
    # process has ended, whose error the launcher should name.
