"""Synthetic images with any combination of two labels, and their table."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image


def draw_image(path: Path, seed: int, marks: str) -> None:
    """Write noise with a bright bar at the top, a bright disc below, both or neither."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 120, (6, 6), dtype=np.uint8))
    pixels = np.asarray(small.resize((48, 48), Image.Resampling.BICUBIC)).copy()
    if "bar" in marks:
        pixels[4:12, 4:44] = 230
    if "disc" in marks:
        y, x = np.mgrid[:48, :48]
        pixels[(y - 32) ** 2 + (x - 24) ** 2 < 90] = 230
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_table(
    folder: Path, n: int = 96, offset: int = 0, cells: tuple[str, ...] = ("", "bar", "disc", "bar | disc")
) -> Path:
    """Write a table of n images, two per patient, that cycles through the label combinations; return its path."""
    rows = []
    for i in range(n):
        label = cells[i // 2 % len(cells)]
        draw_image(folder / "pictures" / f"{i:03d}.png", offset + i, label)
        rows.append({"file_name": f"pictures/{i:03d}.png", "label": label, "patient": f"p{i // 2}"})
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"
