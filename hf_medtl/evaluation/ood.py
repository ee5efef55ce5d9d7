"""Out-of-distribution detection: Mahalanobis distance of features from those of the training images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from hf_medtl.common.files import replacing
from hf_medtl.errors import MedtlError

OOD_FILE = "outliers.safetensors"  # in a model's folder
MAX_COMPONENTS = 32


@dataclass(frozen=True)
class OutOfDistributionScorer:
    """Mahalanobis distance of features to the nearest class of the training images.

    The classes share a covariance (Lee et al. 2018, https://arxiv.org/abs/1807.03888) of a few directions and one
    variance for all the others (Tipping & Bishop 1999, Probabilistic principal component analysis), since there are
    fewer images than features. The file is thus a few hundred kilobytes whatever the model.

    Args:
        centres: (K, d) mean features of each class.
        components: (r, d) orthonormal directions in which images of a class differ most.
        variances: (r,) along these.
        rest: variance along any other direction.
    """

    centres: NDArray[np.float32]
    components: NDArray[np.float32]
    variances: NDArray[np.float32]
    rest: float

    @classmethod
    def fit(cls, features: NDArray[np.floating], classes: NDArray[np.integer]) -> "OutOfDistributionScorer":
        """Fit to training images.

        Args:
            features: (n, d) of images without augmentation.
            classes: (n,) class indices from 0.

        Raises:
            MedtlError: fewer images than needed to estimate the covariance.
        """
        present = np.unique(classes)
        if len(features) < len(present) + 4:
            raise MedtlError(f"{len(features)} images of {len(present)} classes are too few for a covariance.")
        values = features.astype(np.float64)
        centres = np.stack([values[classes == k].mean(axis=0) for k in present])
        differences = values - centres[np.searchsorted(present, classes)]
        dof = len(features) - len(present)
        _, singular, directions = np.linalg.svd(differences, full_matrices=False)
        variances = singular**2 / dof
        rank = min(MAX_COMPONENTS, dof // 4, values.shape[1] // 2)
        rest = max(variances[rank:].sum() / (values.shape[1] - rank), 1e-6 * variances[0], 1e-12)
        return cls(
            centres.astype(np.float32),
            directions[:rank].astype(np.float32),
            np.maximum(variances[:rank], rest).astype(np.float32),
            float(rest),
        )

    def score(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return mean squared distances in standard deviations, (n,), of features (n, d): about 1 in distribution."""
        distances = []
        for centre in self.centres.astype(np.float64):
            difference = features - centre
            along = difference @ self.components.T
            across = (difference**2).sum(axis=1) - (along**2).sum(axis=1)
            distances.append(((along**2) / self.variances).sum(axis=1) + across / self.rest)
        return np.min(distances, axis=0) / self.centres.shape[1]

    def save(self, folder: Path) -> None:
        """Write OOD_FILE."""
        arrays = {name: np.ascontiguousarray(value) for name, value in vars(self).items() if name != "rest"}
        with replacing(folder / OOD_FILE) as partial:
            save_file({**arrays, "rest": np.array([self.rest])}, partial)

    @classmethod
    def load(cls, folder: Path) -> "OutOfDistributionScorer":
        """Read OOD_FILE.

        Raises:
            MedtlError: the file holds something else.
            OSError: the folder has no such file.
        """
        arrays = load_file(folder / OOD_FILE)
        problem = _find_problem(arrays)
        if problem:
            raise MedtlError(f"{folder / OOD_FILE} is no scorer of out-of-distribution images: {problem}.")
        return cls(rest=float(arrays.pop("rest")[0]), **arrays)


def _find_problem(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return why arrays make no scorer, or an empty text."""
    dimensions = {"centres": 2, "components": 2, "variances": 1, "rest": 1}
    if set(arrays) != set(dimensions):
        return f"expected {', '.join(dimensions)}, found {', '.join(sorted(arrays)) or 'nothing'}"
    for name, array in arrays.items():
        if array.ndim != dimensions[name] or array.dtype.kind != "f" or not np.isfinite(array).all():
            return f"{name} must be finite floats in {dimensions[name]} dimensions"
    (number, width), (rank, across) = arrays["centres"].shape, arrays["components"].shape
    if not number or not width or width != across or arrays["variances"].shape != (rank,) or arrays["rest"].size != 1:
        return "the shapes do not belong together"
    return "" if min(arrays["variances"].min(initial=1), arrays["rest"][0]) > 0 else "variances must be positive"


def ood_threshold(scores: NDArray[np.floating], alpha: float = 0.05) -> float:
    """Return the score above which at most a proportion `alpha` of new in-distribution images is expected.

    Split conformal: the k-th highest of n scores, k = (n + 1) alpha rounded down; with fewer than 1 / alpha - 1 images
    a tenth above the highest.

    Args:
        scores: (n,) of validation images, which neither the model nor the scorer was fitted to.
        alpha: rate of false alarms, 0 to 1.
    """
    rank = int((len(scores) + 1) * alpha + 1e-9)
    return float(np.sort(scores)[-rank]) if rank else 1.1 * float(scores.max())
