"""Image files of noise, and masks."""

import numpy as np
from PIL import Image


def write_noise_image(path, seed, size=(40, 48), border=None, **options):
    """Write smooth noise of a seed, optionally with a border of one grey value, as an image file; return its path."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 5), dtype=np.uint8))
    pixels = np.asarray(small.resize(size, Image.Resampling.BICUBIC)).copy()
    if border is not None:
        pixels[:4], pixels[-4:], pixels[:, :4], pixels[:, -4:] = (border,) * 4
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def write_mask(path, side):
    """Write a mask with a rectangle in the left or right half."""
    mask = np.zeros((48, 40), np.uint8)
    mask[10:30, 5:15] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask if side == "left" else mask[:, ::-1]).save(path)


def save_with_masks(folder, images, scales=(1,)):
    """Save images, and masks of where they are dark, in turn on a grid finer by these factors; return files of both."""
    paths, masks = [], []
    for i, image in enumerate(images):
        paths.append(folder / f"{i}.png")
        masks.append([folder / f"{i}-mask.png"])
        image.save(paths[-1])
        dark = Image.fromarray((np.asarray(image)[..., 0] < 128).astype(np.uint8) * 255)
        scale = scales[i % len(scales)]
        dark.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(masks[-1][0])
    return paths, masks
