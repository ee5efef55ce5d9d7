"""Space of clinical_metrics, with its own page because `evaluate.utils.launch_gradio_widget` needs Gradio 3."""

import json
import math
from pathlib import Path

import evaluate
import gradio as gr

HERE = Path(__file__).parent
EXAMPLE = ["[[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]]", "[0, 0, 1, 1]", '["anna", "anna", "ben", "carla"]', 0.5]
metric = evaluate.load(str(HERE / "clinical_metrics.py"))


def compute(predictions: str, references: str, groups: str, threshold: float) -> dict[str, float | None]:
    """Return the metrics of JSON inputs; null where undefined."""
    try:
        probabilities, labels = json.loads(predictions), json.loads(references)
        results = metric.compute(
            predictions=probabilities,
            references=labels,
            groups=json.loads(groups) if groups.strip() else None,
            threshold=threshold if len(probabilities[0]) == 2 else None,
        )
    except (ValueError, TypeError, IndexError) as error:
        raise gr.Error(str(error)) from error
    return {name: value if math.isfinite(value) else None for name, value in results.items()}


demo = gr.Interface(
    compute,
    [
        gr.Textbox(label="predictions: rows of probabilities"),
        gr.Textbox(label="references: true class indices"),
        gr.Textbox(label="groups: the patient of each row (optional)"),
        gr.Slider(0, 1, 0.5, label="threshold (two classes)"),
    ],
    gr.JSON(label="metrics"),
    title="clinical_metrics",
    examples=[EXAMPLE],
    article=(HERE / "README.md").read_text(encoding="utf-8").split("---", 2)[2],
)

if __name__ == "__main__":
    demo.launch()
