"""Figures of a low resolution, once this is imported: 300 dpi take a quarter of the time of a tiny run."""

from hf_medtl.evaluation.matplotlib_backend import write_figure

DEFAULTS = write_figure.__defaults__
write_figure.__defaults__ = (60,)
