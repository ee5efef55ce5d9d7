"""k nearest neighbours by cosine similarity of features: the training-free baseline of self-supervised encoders."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

TEMPERATURE = 0.07  # of the weights of neighbours, as in DINO
NUMBERS = (1, 3, 5, 10, 20, 50, 100, 200)  # of neighbours that are tried
SIMILARITIES = 2**27  # in memory at a time, 0.5 GB


class NearestNeighbours:
    """Classifier by the votes of the k most similar training images, each weighted by exp(cosine similarity / 0.07).

    As the kNN evaluation of DINO (Caron et al. 2021, https://arxiv.org/abs/2104.14294; Wu et al. 2018,
    https://arxiv.org/abs/1805.01978), whose most probable label it gives. Besides the neighbours there is one vote
    without an opinion, so that no probability is 0, and few or very unequal votes are less certain than many:
    (n p + prior) / (n + 1), with the proportion p of the votes and their effective number n = (sum of w)² / sum of w².

    k has the lowest log loss on the training images, the votes of an image's own group left out.

    Args:
        features: (n, d) of the training images.
        targets: (n,) class indices, or (n, K) of 0 and 1.
        groups: (n,) group of each image.
        classes: K.
        weights: (K,) weights of the votes for a class, or for the presence of a label; None for equal weights.

    Attributes:
        k: number of neighbours.
        facts: for results.json.
    """

    def __init__(
        self,
        features: torch.Tensor,
        targets: NDArray[Any],
        groups: Sequence[str],
        classes: int,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.references = nn.functional.normalize(features.float(), dim=1)
        own = torch.ones(classes) if weights is None else torch.as_tensor(weights, dtype=torch.float32)
        has = torch.as_tensor(np.asarray(targets))
        self.multilabel = has.ndim == 2
        has = has.float() if self.multilabel else nn.functional.one_hot(has.long(), classes).float()
        self.votes = has * own  # (n, K)
        self.all_votes = self.votes + (1 - has) if self.multilabel else self.votes.sum(1, keepdim=True)
        numbers = [number for number in NUMBERS if number < len(features)] or [1]
        losses = self._losses(numbers, has, np.unique(np.asarray(groups), return_inverse=True)[1], own)
        self.k = min(losses, key=lambda number: losses[number])  # of equals the smallest
        self.facts = {
            "k": self.k,
            "temperature": TEMPERATURE,
            "images": len(features),
            "loss": {str(number): loss for number, loss in losses.items()},
        }

    def logits(self, features: torch.Tensor) -> NDArray[np.float64]:
        """Return logits (m, K) of features (m, d): the softmax of them, or for labels the sigmoid, are the votes."""
        parts = [votes[self.k] for votes in self._count(features, [self.k])]
        votes = torch.cat(parts).double() if parts else torch.zeros(0, self.votes.shape[1], dtype=torch.float64)
        return (votes.logit() if self.multilabel else votes.log()).numpy()

    def _losses(
        self, numbers: Sequence[int], has: torch.Tensor, groups: NDArray[np.int64], weights: torch.Tensor
    ) -> dict[int, float]:
        totals, start = dict.fromkeys(numbers, 0.0), 0
        for votes in self._count(self.references, numbers, torch.as_tensor(groups)):
            for number, p in votes.items():
                true = has[start : start + len(p)]
                loss = -weights * true * p.log()
                if self.multilabel:
                    loss -= (1 - true) * (1 - p).log()
                totals[number] += float(loss.double().sum())
            start += len(p)
        divisor = float(self.all_votes.double().sum())
        return {number: total / divisor for number, total in totals.items()}

    def _count(
        self, features: torch.Tensor, numbers: Sequence[int], groups: torch.Tensor | None = None
    ) -> Iterator[dict[int, torch.Tensor]]:
        """Yield number of neighbours -> votes (rows, K) as proportions; `groups`: of references that are classified."""
        most = min(max(numbers), len(self.references))
        prior = 1 / 2 if self.multilabel else 1 / self.votes.shape[1]
        rows = max(1, min(1024, SIMILARITIES // len(self.references)))
        for start in range(0, len(features), rows):
            queries = nn.functional.normalize(features[start : start + rows].float(), dim=1)
            similarity = queries @ self.references.T
            if groups is not None:
                similarity[groups[start : start + rows, None] == groups] = -torch.inf
            top = similarity.topk(most, dim=1)
            weight = (
                ((top.values - top.values[:, :1]) / TEMPERATURE).exp().nan_to_num(0)[..., None]
            )  # 0 for the own group
            votes = (weight * self.votes[top.indices]).cumsum(1)
            everyone = (weight * self.all_votes[top.indices]).cumsum(1)
            proportions = torch.where(everyone > 0, votes / everyone, prior)
            effective = (weight.cumsum(1) ** 2 / (weight**2).cumsum(1)).nan_to_num(0)  # 0 / 0 in the own group alone
            smooth = (effective * proportions + prior) / (effective + 1)
            yield {number: smooth[:, min(number, most) - 1] for number in numbers}
