"""Whole runs: training from start to finish, sweeps, comparison and evaluation."""

from hf_medtl.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "compare_runs": "hf_medtl.runs.compare",
        "cross_validate": "hf_medtl.runs.cross_validation",
        "embed_images": "hf_medtl.runs.embed",
        "evaluate_model": "hf_medtl.runs.evaluate",
        "explain_model": "hf_medtl.runs.explain",
        "import_model": "hf_medtl.runs.importing",
        "predict_files": "hf_medtl.runs.batch_predict",
        "run": "hf_medtl.runs.train",
    },
)
