"""Space of segmentation_metrics, with its own page because `evaluate.utils.launch_gradio_widget` needs Gradio 3."""

from pathlib import Path

import evaluate
import gradio as gr
import numpy as np

HERE = Path(__file__).parent
metric = evaluate.load(str(HERE / "segmentation_metrics.py"))


def compute(predicted: np.ndarray | None, true: np.ndarray | None) -> dict[str, float]:
    """Return the metrics of two masks; pixels that are not black are inside."""
    if predicted is None or true is None:
        raise gr.Error("Give two masks of the same size.")
    try:
        return metric.compute(predictions=[predicted > 0], references=[true > 0])
    except ValueError as error:
        raise gr.Error(str(error)) from error


demo = gr.Interface(
    compute,
    [gr.Image(label="predicted mask", image_mode="L"), gr.Image(label="true mask", image_mode="L")],
    gr.JSON(label="metrics"),
    title="segmentation_metrics",
    article=(HERE / "README.md").read_text(encoding="utf-8").split("---", 2)[2],
)

if __name__ == "__main__":
    demo.launch()
