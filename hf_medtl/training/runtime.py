"""What a run was made with: versions and hardware, and nothing that names a person or a machine."""

import ctypes
import importlib.metadata
import logging
import os
import platform
import resource
import sys
from types import TracebackType
from typing import Any

import torch

from hf_medtl.common.system import cores
from hf_medtl.training.recipe import Recipe
from hf_medtl.version import __version__

PACKAGES = ("torch", "torchvision", "transformers", "datasets", "accelerate", "timm", "albumentations",
            "numpy", "pillow", "scikit-learn", "scipy")  # fmt: skip


def environment(precision: str, processes: int) -> dict[str, Any]:
    """Versions of Python and packages, kind of device, cores, number format and number of processes."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})",
        "cpu_cores": cores(),
        "processes": processes,
        "mixed_precision": precision,
        "packages": {"hf_medtl": __version__} | {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def keep_freed_memory() -> bool:
    """Let glibc keep memory that is freed for the next batch; whether it did.

    It hands blocks of more than 32 MB back at once, and the system fills the next ones with zeros, page by page: a
    third of the CPU's time in training a U-Net. Nothing is changed where there is no glibc, or where somebody has set
    MALLOC_* or GLIBC_TUNABLES. Source: mallopt(3). Speed and memory are in benchmarks/README.md.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith(("MALLOC_", "GLIBC_TUN")) for name in os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    m_trim_threshold, m_mmap_max = -1, -4  # of malloc.h
    return bool(mallopt(m_mmap_max, 0) and mallopt(m_trim_threshold, -1))


def peak_memory_mb() -> float:
    """Highest memory so far in MB: the accelerator's where there is one, else this process's resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


class Meter:
    """A context that measures kWh of this whole machine, by its counters or, where they can't be read, estimated.

    It measures nothing without codecarbon, in all processes but the main one, and where a part of the training is
    elsewhere or was before: on other machines, or before a resume. Nothing is sent or written by it.

    Args:
        recipe: of the run.
        resumed: whether the training goes on from a checkpoint.
    """

    def __init__(self, recipe: Recipe, resumed: bool) -> None:
        self.kwh: float | None = None
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) >= recipe.world_size
        self.wanted = here and recipe.should_save and not resumed
        self.tracker: Any = None

    def __enter__(self) -> "Meter":
        if self.wanted:
            try:
                from codecarbon import OfflineEmissionsTracker
            except ImportError:
                return self
            logging.getLogger("codecarbon").setLevel(logging.ERROR)
            # The country is only for emissions, which are not read; without one it complains.
            quiet: dict[str, Any] = {
                "country_iso_code": "USA",
                "log_level": "error",
                "output_methods": [],
                "allow_multiple_runs": True,
            }
            self.tracker = OfflineEmissionsTracker(**quiet)
            self.tracker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.tracker:
            self.tracker.stop()
            if found := getattr(self.tracker, "final_emissions_data", None):
                self.kwh = float(found.energy_consumed)
