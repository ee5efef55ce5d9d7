"""Silence for messages and bars of libraries that tell a user nothing."""

import logging
import os
import sys

from hf_medtl.common.progress import shows_bars

# Logger -> part of a message that is normal here.
NOISE = {
    "transformers.models.auto.image_processing_auto": "backend is not available. Falling back",
    "transformers.models.timm_wrapper.image_processing_timm_wrapper": "`save_pretrained` method is disabled",
    "transformers.trainer_utils": "mtime may not be reliable",
}


def _is_worth_showing(record: logging.LogRecord) -> bool:
    return NOISE[record.name] not in record.getMessage()


def quiet_libraries() -> None:
    """Hide noise of libraries: messages of `NOISE`, bars of a second, and all bars where the output is no terminal.

    Works before and after the libraries are imported. Bars of loading and saving weights are only hidden after.
    """
    for name in NOISE:
        logging.getLogger(name).addFilter(_is_worth_showing)
    if not shows_bars():
        for library in ("HUB", "DATASETS"):
            os.environ.setdefault(f"HF_{library}_DISABLE_PROGRESS_BARS", "1")
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_tqdm_hook(lambda bar, args, kwargs: transformers_logging.EmptyTqdm(*args, **kwargs))
