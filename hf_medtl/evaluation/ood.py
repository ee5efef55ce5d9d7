"""Out-of-distribution detection: Mahalanobis distance of features from those of the training images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from hf_medtl.errors import MedtlError

OOD_FILE = "outliers.safetensors"  # in the folder of a model
MAX_COMPONENTS = 32


@dataclass(frozen=True)
class OutOfDistributionScorer:
    """How far features are from those of the training images: a Mahalanobis distance to the nearest class.

    The classes share a covariance (Lee et al. 2018, https://arxiv.org/abs/1807.03888) of a few directions and one
    variance for all the others (Tipping & Bishop 1999, Probabilistic principal component analysis), since images are
    fewer than features. So it is a few hundred kilobytes whatever the model.

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
        """From training images.

        Args:
            features: (n, d) of images as they are, without augmentation.
            classes: (n,) class indices from 0.

        Raises:
            MedtlError: fewer images than needed for a spread.
        """
        present = np.unique(classes)
        if len(features) < len(present) + 4:
            raise MedtlError(f"{len(features)} pictures of {len(present)} classes are too few for their spread.")
        values = features.astype(np.float64)
        centres = np.stack([values[classes == k].mean(axis=0) for k in present])
        differences = values - centres[np.searchsorted(present, classes)]
        freedom = len(features) - len(present)
        _, singular, directions = np.linalg.svd(differences, full_matrices=False)
        variances = singular**2 / freedom
        kept = min(MAX_COMPONENTS, freedom // 4, values.shape[1] // 2)
        rest = max(variances[kept:].sum() / (values.shape[1] - kept), 1e-6 * variances[0], 1e-12)
        return cls(
            centres.astype(np.float32),
            directions[:kept].astype(np.float32),
            np.maximum(variances[:kept], rest).astype(np.float32),
            float(rest),
        )

    def score(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """(n,) mean squared distance in standard deviations: about 1 for images like those of training.

        Args:
            features: (n, d).
        """
        found = []
        for centre in self.centres.astype(np.float64):
            difference = features - centre
            along = difference @ self.components.T
            beside = (difference**2).sum(axis=1) - (along**2).sum(axis=1)
            found.append(((along**2) / self.variances).sum(axis=1) + beside / self.rest)
        return np.min(found, axis=0) / self.centres.shape[1]

    def save(self, folder: Path) -> None:
        """Write FILE."""
        arrays = {name: np.ascontiguousarray(value) for name, value in vars(self).items() if name != "rest"}
        save_file({**arrays, "rest": np.array([self.rest])}, folder / OOD_FILE)

    @classmethod
    def load(cls, folder: Path) -> "OutOfDistributionScorer":
        """Read FILE.

        Raises:
            OSError: there is none.
        """
        arrays = load_file(folder / OOD_FILE)
        return cls(rest=float(arrays.pop("rest")[0]), **arrays)


def ood_threshold(scores: NDArray[np.floating], alpha: float = 0.05) -> float:
    """Score above which a share of at most `alpha` of new images, drawn as these, is expected (split conformal).

    The k-th highest of n, k = (n + 1) alpha rounded down; with fewer than 1 / alpha - 1 images a tenth above the
    highest.

    Args:
        scores: (n,) of validation images, which the model and `OutOfDistributionScorer` have not learnt from.
    """
    rank = int((len(scores) + 1) * alpha + 1e-9)
    return float(np.sort(scores)[-rank]) if rank else 1.1 * float(scores.max())
