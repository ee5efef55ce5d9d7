"""Former name of `hf_medtl.evaluation.ood`, for code that imports it."""

from hf_medtl.evaluation.ood import OutOfDistributionScorer as Outliers

__all__ = ["Outliers"]
