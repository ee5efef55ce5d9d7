"""The names that `hf_medtl.data.inputs` had in earlier releases."""

from hf_medtl.data.inputs import image_files as picture_files

__all__ = ["picture_files"]
