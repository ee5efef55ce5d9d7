"""Space of clinical_metrics. `evaluate.utils.launch_gradio_widget` needs Gradio 3, so this is its own page."""

import json
import math
from pathlib import Path

import evaluate
import gradio as gr

HERE = Path(__file__).parent
EXAMPLE = ["[[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]]", "[0, 0, 1, 1]", '["anna", "anna", "ben", "carla"]', 0.5]
metric = evaluate.load(str(HERE / "clinical_metrics.py"))


def compute(predictions: str, references: str, groups: str, threshold: float) -> dict[str, float | None]:
    """Metrics of what was typed, null where undefined."""
    try:
        chances, labels = json.loads(predictions), json.loads(references)
        patients = json.loads(groups) if groups.strip() else None
        cut = threshold if len(chances[0]) == 2 else None
        found = metric.compute(predictions=chances, references=labels, groups=patients, threshold=cut)
    except (ValueError, TypeError, IndexError) as error:
        raise gr.Error(str(error)) from error
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


demo = gr.Interface(
    compute,
    [
        gr.Textbox(label="predictions: rows of probabilities"),
        gr.Textbox(label="references: true class indices"),
        gr.Textbox(label="groups: the patient of each row; may be empty"),
        gr.Slider(0, 1, 0.5, label="threshold of two classes"),
    ],
    gr.JSON(label="metrics"),
    title="clinical_metrics",
    examples=[EXAMPLE],
    article=(HERE / "README.md").read_text(encoding="utf-8").split("---", 2)[2],
)

if __name__ == "__main__":
    demo.launch()
