"""Energy of training, where codecarbon is installed (pip install 'hf_medtl[energy]')."""

import logging
import os
from types import TracebackType
from typing import Any

from hf_medtl.training.recipe import Recipe


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
