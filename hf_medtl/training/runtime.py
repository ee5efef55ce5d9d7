"""Runtime of a run: versions, hardware, memory and energy, without names of persons or machines."""

import contextlib
import ctypes
import importlib.metadata
import logging
import os
import platform
import sys
from types import TracebackType
from typing import Any

import torch

from hf_medtl.common.code_version import commit
from hf_medtl.common.system import cores
from hf_medtl.models.device import select_device
from hf_medtl.training.recipe import Recipe
from hf_medtl.version import __version__

PACKAGES = ("torch", "torchvision", "transformers", "datasets", "accelerate", "timm", "albumentations",
            "numpy", "pillow", "scikit-learn", "scipy")  # fmt: skip


def environment(precision: str, processes: int, device: torch.device | None = None) -> dict[str, Any]:
    """Return versions of Python, packages and our code, device, cores, mixed precision and number of processes.

    Args:
        precision: mixed precision.
        processes: number of processes.
        device: that computes; by default the accelerator if there is one.
    """
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "device": device_name(device or select_device()),
        "cpu_cores": cores(),
        "processes": processes,
        "mixed_precision": precision,
        "hf_medtl_commit": commit(),
        "packages": {"hf_medtl": __version__} | versions,
    }


def device_name(device: torch.device) -> str:
    """Return the name of a device, such as "NVIDIA H200", "MPS (arm64)" or "CPU (x86_64)"."""
    name = getattr(getattr(torch, device.type, None), "get_device_name", None)
    return name() if name else f"{device.type.upper()} ({platform.machine()})"


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next batch; return True if it does.

    By default it returns blocks of more than 32 MB to the system at once, which then fills new ones with zeros, page by
    page: a third of the CPU time when training a U-Net. Nothing changes without glibc, or if MALLOC_* or GLIBC_TUNABLES
    is set. Source: mallopt(3). Speed and memory are in benchmarks/README.md.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith(("MALLOC_", "GLIBC_TUN")) for name in os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    m_trim_threshold, m_mmap_max = -1, -4  # from malloc.h
    return bool(mallopt(m_mmap_max, 0) and mallopt(m_trim_threshold, -1))


def peak_memory_mb(device: torch.device | None = None) -> float:
    """Return the peak memory in MB: of an accelerator, else the resident set of this process.

    Apple's GPU shares the memory of the process and counts no peak, so what it has now is given.
    """
    device = device or select_device()
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 1e6
    if device.type != "cpu":
        return torch.accelerator.max_memory_allocated() / 1e6
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        memory = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


class EnergyMeter:
    """Context manager that measures the energy of the whole machine in kWh with codecarbon.

    The energy is estimated if the hardware counters cannot be read. Nothing is measured without codecarbon, outside the
    main process, or if a part of training happens elsewhere or earlier: on other machines, or before a resume. Nothing
    is sent or written to disk.

    Args:
        recipe: configuration of the run.
        resumed: True if training resumes from a checkpoint.
    """

    def __init__(self, recipe: Recipe, resumed: bool) -> None:
        self.kwh: float | None = None
        single_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) >= recipe.world_size
        self.enabled = single_machine and recipe.should_save and not resumed
        self.tracker: Any = None

    def __enter__(self) -> "EnergyMeter":
        if self.enabled:
            try:
                from codecarbon import OfflineEmissionsTracker
            except ImportError:
                return self
            logging.getLogger("codecarbon").setLevel(logging.ERROR)
            # The country only matters for emissions, which are not used, but it is required.
            options: dict[str, Any] = {
                "country_iso_code": "USA",
                "log_level": "error",
                "output_methods": [],
                "allow_multiple_runs": True,
            }
            self.tracker = OfflineEmissionsTracker(**options)
            self.tracker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.tracker:
            self.tracker.stop()
            if data := getattr(self.tracker, "final_emissions_data", None):
                self.kwh = float(data.energy_consumed)
