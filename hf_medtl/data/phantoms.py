"""Synthetic images ("phantoms"): brain MR slices and chest radiographs, drawn from formulas and random numbers.

They contain no patient data, and no file is shipped. They are for tests, demos and teaching, and not evidence about
any real image. Coordinates: x to the right and y downwards, in half image widths, with the origin in the middle of
the anatomy.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_opening, gaussian_filter, map_coordinates
from scipy.special import expit
from tqdm import tqdm

from hf_medtl.common.files import scratch_folder

Array = NDArray[np.float64]
LABELS = {"brain": ("no_lesion", "lesion"), "chest": ("normal", "opacity")}
VERSION = 1  # increase it when a change alters the images: `write_phantoms` then refuses to reuse an older folder

_README = """# Synthetic {kind} images

These images are **synthetic**: drawn by hf_medtl (`hf_medtl.data.phantoms`) from formulas and random numbers.
They show no patient and say nothing about any. Use them for tests, demos and teaching only.

- {patients} patients, {pictures} images of each, {size} x {size} pixels, 8-bit grey
- seed {seed}, version {version} of the drawing
- one folder per label; `masks/` holds the mask of each image (brain: the lesion, empty without one; chest: the lungs)
- keep all images of a patient (file name up to the `_`) in one split

Licence: CC0-1.0
"""


@dataclass(frozen=True)
class Phantom:
    """One synthetic image: `image` (grey) and `mask` (0 or 255) are (size, size) uint8."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    label: str
    patient: str
    index: int


def _rng(seed: int, kind: str, *numbers: int) -> np.random.Generator:
    # The closing 1: SeedSequence pads with zeros, so [0, 1, 7] and [0, 1, 7, 0] would be the same stream.
    return np.random.default_rng([seed, list(LABELS).index(kind), *numbers, 1])


def _texture(rng: np.random.Generator, sigma: float) -> Array:
    """Return smooth periodic noise with unit standard deviation over [-1, 1)², band-passed around `sigma` cells."""
    noise = rng.standard_normal((192, 192))
    field = gaussian_filter(noise, sigma, mode="wrap") - gaussian_filter(noise, 2 * sigma, mode="wrap")
    return field / field.std()


def _at(texture: Array, x: Array, y: Array) -> Array:
    cells = len(texture)
    return map_coordinates(texture, [(y + 1) * cells / 2, (x + 1) * cells / 2], order=1, mode="grid-wrap")


def _in(distance: Array, width: float = 0.01) -> Array:
    """Return 1 inside (distance < 0) and 0 outside, with an edge of about `width`."""
    return expit(-distance / width)


def _mix(image: Array, value: Array | float, alpha: Array | float) -> Array:
    return image + (value - image) * alpha


def _ellipse(x: Array, y: Array, cx: float, cy: float, rx: float, ry: float, turn: float = 0.0) -> Array:
    c, s = np.cos(turn), np.sin(turn)
    u, v = c * (x - cx) + s * (y - cy), c * (y - cy) - s * (x - cx)
    return (np.hypot(u / rx, v / ry) - 1) * min(rx, ry)


def _stick(x: Array, y: Array, ax: float, ay: float, bx: float, by: float) -> Array:
    """Return the distance to the segment a-b."""
    dx, dy = bx - ax, by - ay
    t = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
    return np.hypot(x - ax - t * dx, y - ay - t * dy)


def _blob(x: Array, y: Array, cx: float, cy: float, radius: float, waves: Array) -> Array:
    """Return the distance to a star-shaped irregular outline; `waves` is (orders, 2): cosine and sine parts."""
    theta = np.arctan2(y - cy, x - cx)
    edge = sum(c * np.cos((k + 2) * theta) + s * np.sin((k + 2) * theta) for k, (c, s) in enumerate(waves))
    return np.hypot(x - cx, y - cy) - radius * (1 + edge)


def _lines(wave: Array) -> Array:
    """Return the distance to the zero lines of `wave`; the constant keeps flat areas from becoming broad patches."""
    return np.abs(wave) / (np.hypot(*np.gradient(wave, 2 / len(wave))) + 4)


def _place(rng: np.random.Generator, size: int, turn: float) -> tuple[Array, Array]:
    """Return the pixel grid in the anatomy's coordinates: rotated (degrees), shifted and scaled."""
    angle, scale = np.radians(rng.uniform(-turn, turn)), rng.uniform(0.93, 1.07)
    dx, dy = rng.uniform(-0.04, 0.04, 2)
    line = (np.arange(size) + 0.5) * 2 / size - 1
    x, y = np.meshgrid((line - dx) / scale, (line - dy) / scale)
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def _acquire(rng: np.random.Generator, image: Array, rician: bool) -> NDArray[np.uint8]:
    """Simulate acquisition: field inhomogeneity, contrast, blur, noise; independent of label and value range."""
    size = len(image)
    line = np.linspace(-1, 1, size)
    tilt, bend = rng.normal(0, 0.06, 2), rng.normal(0, 0.05, 3)
    field = tilt[0] * line[:, None] + tilt[1] * line + bend[0] * line[:, None] ** 2 + bend[1] * line**2
    image = np.clip(image * np.exp(field + bend[2] * line[:, None] * line), 0, None)
    image = rng.uniform(0.88, 1.08) * image ** rng.uniform(0.85, 1.2)
    image = gaussian_filter(image, rng.uniform(0.3, 0.8) * size / 128)
    sigma, noise = rng.uniform(0.012, 0.035), rng.standard_normal((2, size, size))
    if rician:
        image = np.hypot(image + sigma * noise[0], sigma * noise[1])
    else:  # quantum noise: grows where few photons arrive, that is in the bright (dense) parts
        image = image + sigma * np.sqrt(0.2 + image) * gaussian_filter(noise[0], 0.5) * 1.3
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def _check(**numbers: int) -> None:
    for name, number in numbers.items():
        minimum = {"patients": 2, "images": 1, "size": 32}.get(name, 0)
        if number < minimum:
            raise ValueError(f"{name}: expected at least {minimum}, found {number}; pass {minimum} or more")


def _phantom(
    kind: str, patient: int, index: int, finding: bool, image: NDArray[np.uint8], mask: NDArray[np.bool_]
) -> Phantom:
    label = LABELS[kind][bool(finding)]
    return Phantom(image, np.where(mask, 255, 0).astype(np.uint8), label, f"{kind}-{patient:04d}", index)


def draw_brain(patient: int, index: int, lesion: bool, *, seed: int = 0, size: int = 128) -> Phantom:
    """Draw an axial brain slice resembling an MR image, with or without a lesion.

    The anatomy (and the position of a lesion) depends on (seed, patient); position, slice level, contrast and noise
    depend on (seed, patient, index). Neither depends on `lesion`, so both versions differ only in the lesion itself.

    Args:
        patient: Number of the patient.
        index: Number of the patient's image.
        lesion: True to draw a lesion, which is also the mask (empty otherwise).
        seed: Random seed.
        size: Height and width in pixels.

    Raises:
        ValueError: size < 32 or a negative number.
    """
    _check(patient=patient, index=index, seed=seed, size=size)
    own, shot = _rng(seed, "brain", patient), _rng(seed, "brain", patient, index)
    x, y = _place(shot, size, 10)
    half, length, squareness, egg = own.uniform([0.68, 0.84, 2.05, 0.02], [0.76, 0.92, 2.4, 0.10])
    scalp, skull, swell = own.uniform([0.030, 0.045, 0.018], [0.07, 0.065, 0.06])
    lean, bow = own.normal(0, 0.015, 2)
    sulci, folds, fine = _texture(own, 4.0), _texture(own, 6.0), _texture(own, 1.5)
    white, grey, fluid, fat = own.uniform([0.52, 0.34, 0.06, 0.82], [0.60, 0.44, 0.14, 0.98])
    usual = own.uniform(0, 1)  # slice level: 0 by the thalamus, 1 by the roof of the ventricles
    level = np.clip(usual + shot.normal(0, 0.12), 0, 1)

    def head(x: Array, y: Array, level: float) -> tuple[Array, Array, Array]:
        """Depth under the brain's surface, distance to the ventricles, x off the midline."""
        off = x - lean * y - bow * (1 - y**2)
        u, r = np.abs(off), np.hypot(x, y) + 1e-9
        across, along = np.abs(x) / (half * (1 + egg * y)), np.abs(y) / length
        rho = (across**squareness + along**squareness) ** (1 / squareness) + 1e-9
        front, back = 0.035 + 0.9 * np.clip(-0.08 - y, 0, 1) ** 2, 0.05 + 1.3 * np.clip(y - 0.02, 0, 1) ** 1.6
        horn = np.hypot(0.9 * (u - front), np.clip(np.abs(y + 0.20 - 0.06 * level) - 0.14 - 0.06 * level, 0, 1))
        trigone = np.hypot(0.75 * (u - back), np.clip(np.abs(y - 0.24 + 0.10 * level) - 0.10 - 0.08 * level, 0, 1))
        third = np.hypot(u, np.clip(np.abs(y - 0.05) - 0.09, 0, 1)) - 0.4 * swell + 0.03 * level
        space = np.minimum(np.minimum(horn - swell, trigone - swell * (1.1 - 0.2 * level)), third)
        return r / rho - r - scalp - skull - 0.025, space, off

    depth, space, off = head(x, y, level)
    u, r, theta = np.abs(off), np.hypot(x, y), np.arctan2(y, off)
    # Distance to the nearest pia: the surface, a sulcus (zero line of a texture stretched along the radius, down to a
    # varying depth), the midline fissure or the Sylvian fissure. The cortex is then what lies near the pia.
    bent = theta / np.pi + 0.03 * _at(folds, x, y)
    line = _lines(_at(sulci, bent, 0.45 * r + 0.03 * _at(folds, y, x) + 0.05 * level))
    reach = 0.20 + 0.06 * _at(folds, bent, 0.2 * r)
    pia = np.minimum(depth, np.hypot(line, np.maximum(depth - reach, 0)))
    pia = np.minimum(pia, np.hypot(u, np.maximum(0.44 - np.abs(y), 0)))
    pia = np.minimum(pia, _stick(u, y, 0.62, -0.16, 0.44, -0.04) + 0.1 * level)
    nuclei = np.minimum(_ellipse(u, y, 0.15, -0.17, 0.05, 0.11, 0.3), _ellipse(u, y, 0.11, 0.08, 0.075, 0.12, -0.3))
    nuclei = np.minimum(nuclei, _ellipse(u, y, 0.29, -0.05, 0.05, 0.15, 0.2)) + 0.06 * level
    tissue = _mix(white, grey, np.maximum(_in(pia - 0.06, 0.010), 0.8 * _in(nuclei, 0.015)))
    tissue = tissue * (1 + 0.025 * _at(fine, x, y) + 0.02 * _at(folds, x, y))

    # Benign bright spots in both classes: periventricular caps, small white matter spots, vessels, calcifications.
    tissue = _mix(tissue, 0.75, own.uniform(0, 0.5) * _in(space - 0.025, 0.015))
    for _ in range(own.poisson(3)):
        spot = own.uniform([-0.55, -0.65, 0.010, 0.65], [0.55, 0.65, 0.028, 0.90])
        tissue = _mix(tissue, spot[3], 0.8 * _in(np.hypot(x - spot[0], y - spot[1]) - spot[2], 0.008))
    image = _mix(tissue, fluid, np.maximum(0.9 * _in(pia - 0.013, 0.006), _in(space, 0.010)))
    for _ in range(own.poisson(4)):
        cx, cy, angle, long = own.uniform([-0.6, -0.75, 0, 0.01], [0.6, 0.75, np.pi, 0.12])
        bx, by = x + 0.02 * _at(folds, x, y), y + 0.02 * _at(folds, y, x)
        vessel = _stick(bx, by, cx, cy, cx + long * np.cos(angle), cy + long * np.sin(angle))
        image = _mix(image, 0.8, 0.8 * _in(vessel - 0.007, 0.005))
    for cx in (-0.17, 0.17):  # choroid plexus
        there, value, radius = own.uniform([0, 0.7, 0.015], [1, 0.95, 0.035])
        image = _mix(image, value, (there < 0.5) * _in(np.hypot(off - cx, y - 0.27) - radius, 0.008))

    spots = own.uniform([-0.6, -0.75], [0.6, 0.75], (400, 2)).T
    deep, clear, side = head(spots[0], spots[1], usual)
    cx, cy = spots[:, np.argmax((deep > 0.10) & (clear > 0.07) & (np.abs(side) > 0.08))] + shot.normal(0, 0.012, 2)
    radius, contrast, halo, rim = own.uniform([0.12, 0.18, 0.02, 0.04], [0.26, 0.40, 0.12, 0.07])
    style = own.random()
    waves = own.normal(0, 0.10, (4, 2)) / np.arange(1, 5)[:, None]
    blob = _blob(x, y, cx, cy, radius * np.exp(shot.normal(0, 0.06)), waves)
    parenchyma = _in(-depth + 0.01, 0.006) * _in(-space, 0.01)
    lesion_image = image + 0.35 * contrast * _in(blob - halo, 0.03)  # oedema
    lesion_image = _mix(lesion_image, white + contrast * (1 + 0.1 * _at(fine, y, x)), 0.85 * _in(blob, 0.012))
    if style < 0.3:  # ring enhancement around a necrotic centre
        lesion_image = _mix(lesion_image, fluid + 0.15, 0.85 * _in(blob + rim, 0.012))
    image = _mix(image, lesion_image, parenchyma) if lesion else image
    mask = (blob < 0) & (depth > 0.01) & (space > 0) & lesion

    image = _mix(fluid, image, _in(-depth, 0.008))
    image = _mix(image, 0.05, _in(depth + 0.025, 0.008))
    image = _mix(image, 0.28, 0.8 * _in(np.abs(depth + 0.025 + skull / 2) - skull / 6, 0.008))
    image = _mix(image, fat * (1 + 0.08 * _at(folds, x, y)), _in(depth + 0.025 + skull, 0.01))
    image = _mix(image, 0.02, _in(depth + scalp + skull + 0.025, 0.01))
    return _phantom("brain", patient, index, lesion, _acquire(shot, image, rician=True), mask)


def draw_chest(patient: int, index: int, opacity: bool, *, seed: int = 0, size: int = 128) -> Phantom:
    """Draw a frontal chest radiograph, with or without an opacity (patchy consolidation) in the lungs.

    As for `draw_brain`, anatomy depends on (seed, patient), acquisition on (seed, patient, index), and neither on
    `opacity`.

    Args:
        patient: Number of the patient.
        index: Number of the patient's image.
        opacity: True to draw an opacity; the mask is both lungs in either case.
        seed: Random seed.
        size: Height and width in pixels.

    Raises:
        ValueError: size < 32 or a negative number.
    """
    _check(patient=patient, index=index, seed=seed, size=size)
    own, shot = _rng(seed, "chest", patient), _rng(seed, "chest", patient, index)
    x, y = _place(shot, size, 4)
    u = np.abs(x)
    wide, top, base, heart, thick = own.uniform([0.66, 1.26, 0.48, 0.22, 0.88], [0.80, 1.36, 0.64, 0.36, 1.15])
    gap, hila, breast, knob, full = own.uniform([0.15, 0.7, 0.0, 0.07, 0.29], [0.18, 1.3, 0.16, 0.10, 0.40])
    base += shot.normal(0, 0.02)  # depth of breath
    folds, fine, twigs = _texture(own, 6.0), _texture(own, 1.5), _texture(own, 3.0)

    def cage(y: Array) -> Array:
        """Half width of the rib cage."""
        return wide * (1 - np.clip((0.5 - y) / top, 0, 0.99) ** 2.5) ** 0.7

    body = np.maximum(u - 1.02 - 0.02 * np.cos(3 * y), -0.88 + 0.45 * np.clip(u - 0.20, 0, 1) ** 2 - y)
    body = np.minimum(body, u - 0.22 - 0.8 * np.clip(y + 0.95, 0, 1))
    dome = base - 0.06 * (x < 0) + 1.1 * np.clip(u - 0.34, -0.2, 1) ** 2
    organs = _ellipse(x, y, 0.12, base - 0.20, heart + 0.10, 0.24, 0.5)
    organs = np.minimum(organs, _ellipse(x, y, -0.04, base - 0.22, 0.17, 0.24))
    organs = np.minimum(organs, _ellipse(x, y, 0.08, -0.26, knob, knob + 0.06))
    organs = np.minimum(organs, u - 0.10 - 0.02 * np.cos(6 * y))
    lung = np.maximum(np.maximum(u - cage(y), y - dome), -organs)
    air = _in(lung, 0.010)

    film = 0.50 * thick * _in(body, 0.015) * (1 + 0.03 * _at(folds, x, y)) + 0.02
    film += 0.55 * _in(dome - y, 0.012) * _in(u - cage(y), 0.06) + 0.42 * _in(organs, 0.02) * _in(body, 0.02)
    film += _in(u - 0.085, 0.012) * (0.12 + 0.03 * np.sin(y * 2 * np.pi / 0.14)) * _in(body, 0.02)
    film -= full * air * (0.8 + 0.2 * np.clip(-lung / 0.15, 0, 1))
    film += 0.10 * _in(_ellipse(u, y, 0.97, -0.52, 0.14, 0.14), 0.012) * _in(body, 0.02)
    film += 0.04 * _in(0.62 - 0.18 * (y + 0.6) - u, 0.008) * _in(np.abs(y + 0.35) - 0.3, 0.03)  # shoulder blade
    # Ribs: tubes, so brighter along both edges. The posterior half runs out and down, the anterior one back in.
    t = u / cage(y)
    for arch, power, inner in ((0.02 * t + 0.26 * t**4, 0.07, 0.1), (0.28 + 0.42 * (1 - t), 0.04, 0.45)):
        phase = np.abs(((y - arch) / gap) % 1 - 0.5)
        tube = _in(phase - 0.2, 0.03) * (0.7 + 8 * phase**2)
        film += power * tube * _in(t - 1.03, 0.01) * _in(inner - t, 0.03) * _in(y - base - 0.1, 0.05)
    collar = _stick(u, y + 0.03 * np.sin(7 * u), 0.09, -0.56, 0.80, -0.64) - 0.03
    film += 0.12 * _in(collar, 0.008) * (1 + 0.4 * (collar > -0.012)) * _in(body + 0.04, 0.02)
    # Vessels: branches from the hila, fainter towards the pleura.
    far, way = np.hypot(u - 0.13, y + 0.02), np.arctan2(y + 0.02, u - 0.13) / np.pi
    branch = _lines(_at(twigs, way + 0.02 * _at(folds, x, y) + 0.3 * (x > 0), 0.4 * far))
    film += hila * air * (0.16 * np.exp(-far / 0.3) * _in(branch - 0.010, 0.006) + 0.16 * np.exp(-((far / 0.13) ** 2)))

    # Benign shadows in both classes: breasts, calcified granulomas, an electrode with its wire.
    film += breast * _in(np.hypot(u - 0.44, y - 0.22) - 0.34, 0.02) * np.clip((y + 0.1) / 0.5, 0, 1)
    for _ in range(own.poisson(2)):
        cx, cy, radius, value = own.uniform([-0.6, -0.5, 0.010, 0.1], [0.6, 0.4, 0.025, 0.4])
        film += value * _in(np.hypot(x - cx, y - cy) - radius, 0.006)
    cx, cy, ex, ey, wire = shot.uniform([-0.7, -0.4, -0.9, 0.9, 0], [0.7, 0.5, 0.9, 1.1, 1])
    lead = np.minimum(np.hypot(x - cx, y - cy) - 0.025, _stick(x, y, cx, cy, ex, ey) - 0.005)
    film += 0.3 * (wire < 0.25) * _in(lead, 0.004)

    cloud = np.zeros_like(film)
    for _ in range(own.integers(1, 4)):
        side, out, cy, radius, dense = own.uniform([-1, 0.5, -0.4, 0.12, 0.14], [1, 0.85, base - 0.12, 0.27, 0.34])
        waves = own.normal(0, 0.12, (4, 2)) / np.arange(1, 5)[:, None]
        cx, cy = np.sign(side) * out * cage(cy) + shot.normal(0, 0.015), cy + shot.normal(0, 0.015)
        patch = dense * _in(_blob(x, y, cx, cy, radius, waves), 0.035)
        cloud = np.maximum(cloud, patch * (0.8 + 0.2 * _at(folds, y, x) + 0.08 * _at(fine, x, y)))
    film = film + air * cloud.clip(0) if opacity else film
    image = _acquire(shot, 1 - np.exp(-1.7 * film), rician=False)
    return _phantom("chest", patient, index, opacity, image, binary_opening(lung < 0))  # opened: no lone pixels


def draw_cohort(
    kind: str, *, patients: int = 150, images: int = 2, seed: int = 0, size: int = 128
) -> Iterator[Phantom]:
    """Yield the images of a cohort; of each two consecutive patients, one has the finding.

    Args:
        kind: "brain" or "chest".
        patients: Number of patients.
        images: Number of images per patient.
        seed: Random seed.
        size: Height and width in pixels.

    Raises:
        ValueError: Unknown kind, patients < 2, images < 1, size < 32 or a negative seed.
    """
    if kind not in LABELS:
        raise ValueError(f"kind: expected one of {', '.join(LABELS)}, found {kind!r}; choose one of them")
    _check(patients=patients, images=images, seed=seed, size=size)
    draw = {"brain": draw_brain, "chest": draw_chest}[kind]
    has_finding = [bool(patient % 2 == _rng(seed, kind, patient // 2, 0, 0).integers(2)) for patient in range(patients)]
    return (draw(i, j, has_finding[i], seed=seed, size=size) for i in range(patients) for j in range(images))


def write_phantoms(
    folder: str | Path, kind: str, *, patients: int = 150, images: int = 2, seed: int = 0, size: int = 128
) -> Path:
    """Write a cohort as 8-bit grey PNG files: `<label>/<patient>_<index>.png` and `masks/<patient>_<index>.png`.

    The folder is created atomically; one that already contains the same images is reused.

    Args:
        folder: Folder to create.
        kind: "brain" or "chest".
        patients: Number of patients.
        images: Number of images per patient.
        seed: Random seed.
        size: Height and width in pixels.

    Returns:
        The folder.

    Raises:
        ValueError: As for `draw_cohort`.
        FileExistsError: The folder contains something else.
    """
    folder = Path(folder)
    phantoms = draw_cohort(kind, patients=patients, images=images, seed=seed, size=size)
    wanted = {"kind": kind, "patients": patients, "pictures": images, "seed": seed, "size": size, "version": VERSION}
    if _holds(folder, wanted):
        return folder
    with scratch_folder(folder.parent) as new:
        for name in ("masks", *LABELS[kind]):
            (new / name).mkdir()
        title, total = f"Drawing {kind} phantoms", patients * images
        for phantom in tqdm(phantoms, title, total, unit="image", delay=2, disable=None):
            file = f"{phantom.patient}_{phantom.index}.png"
            Image.fromarray(phantom.image).save(new / phantom.label / file)
            Image.fromarray(phantom.mask).save(new / "masks" / file)
        (new / "phantoms.json").write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        (new / "README.md").write_text(_README.format(**wanted), encoding="utf-8")
        try:
            new.rename(folder)
        except OSError:  # another process was faster
            if not _holds(folder, wanted):
                raise
    return folder


def _holds(folder: Path, wanted: dict[str, Any]) -> bool:
    """True if the folder contains these phantoms; FileExistsError if it contains anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        made = json.loads((folder / "phantoms.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        made = "no readable phantoms.json"
    if made != wanted:
        raise FileExistsError(
            f"{folder}: expected phantoms made with {wanted}, found {made}; "
            "pass another folder, or remove this one to recreate it"
        )
    return True
