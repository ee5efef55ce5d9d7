"""A script that evaluates a finished run without hf_medtl."""

import json
import subprocess

EVALUATION_SCRIPT = """
import json, sys
from pathlib import Path
import pandas as pd
from sklearn.metrics import accuracy_score, roc_auc_score
from transformers import AutoModelForImageClassification, pipeline

model, folder, data = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
results = json.loads((folder / "results.json").read_text())
rows = pd.read_csv(folder / "splits.csv").query("split == 'test'")
loaded = AutoModelForImageClassification.from_pretrained(model)
classify = pipeline("image-classification", model=model)
answers = classify([str(data / path) for path in rows["path"]], top_k=None)
score = [next(a["score"] for a in answer if a["label"] == results["positive_label"]) for answer in answers]
truth = rows["label"] == results["positive_label"]
assert loaded.config.threshold == results["threshold"]
accuracy = accuracy_score(truth, [s >= loaded.config.threshold for s in score])
assert "hf_medtl" not in sys.modules
print(json.dumps({"accuracy": accuracy, "roc_auc": roc_auc_score(truth, score)}))
"""


def printed_metrics(process: subprocess.CompletedProcess) -> dict[str, float]:
    """Return the metrics that the script printed."""
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])
