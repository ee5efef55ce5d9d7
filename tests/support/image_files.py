"""Image files of noise."""

import numpy as np
from PIL import Image


def write_noise_image(path, seed, size=(40, 48)):
    """Write smooth noise of a seed as an image file and return its path."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 5), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    small.resize(size, Image.Resampling.BICUBIC).save(path)
    return path
