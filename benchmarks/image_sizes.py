"""The same backbones at several image sizes, fine-tuned and as fixed features, with intervals and seconds.

    python benchmarks/image_sizes.py --data DIR --weights DIR --out runs/sizes                    # all rows
    python benchmarks/image_sizes.py --data DIR --weights DIR --out runs/sizes --only sizes/brain
    python benchmarks/image_sizes.py --out runs/sizes --table                                     # of what is there

Places and files as for results.py. The ViT-S has patches of 14 pixels, so it gets the multiple of 14 that is nearest.
"""

import json
from pathlib import Path

from comparison import Predictions, average, difference
from results import LITE_0, METRICS, VIT, Row, main, show

BRAIN, CHEST = "brain-mri-images-for-brain-tumor-detection", "chest-xray-pneumonia"
MNIST = "medmnist/pneumoniamnist_reassembled.npz"
PATCH = 14
CHEST_EPOCHS = "--num_train_epochs 4"
PROBE = "--strategy linear_probe"
OF_MNIST = f"--dataset medmnist {PROBE}"
VIT_S = f"--model_name_or_path WEIGHTS/{VIT}"


def rows(data: str, name: str, recipe: str, flags: str, sizes: tuple[int, ...]) -> list[Row]:
    """A row for each image size in pixels, rounded to whole patches for the ViT."""
    if "vit-small" in flags:
        sizes = tuple(PATCH * round(size / PATCH) for size in sizes)
    return [Row(f"sizes/{name}/{size}", data, recipe, f"{flags} --image_size {size}", (1,)) for size in sizes]


ROWS = [
    *rows(BRAIN, "brain/lite0/full", "resnet50_brain", LITE_0, (160, 224, 320)),
    *rows(CHEST, "chest/lite0/full", "resnet50_pneumonia", f"{LITE_0} {CHEST_EPOCHS}", (224, 320)),
    *rows(BRAIN, "brain/vit-s/linear_probe", "vit_brain", f"{VIT_S} {PROBE}", (160, 224, 320)),
    *rows(CHEST, "chest/vit-s/linear_probe", "resnet50_pneumonia", f"{VIT_S} {PROBE}", (224, 320)),
    *rows(MNIST, "mnist/lite0/linear_probe", "resnet50_pneumonia", f"{LITE_0} {OF_MNIST}", (28, 64, 128, 224)),
    *rows(MNIST, "mnist/vit-s/linear_probe", "resnet50_pneumonia", f"{VIT_S} {OF_MNIST}", (28, 64, 128, 224)),
]


def table(out: Path) -> str:
    """Markdown of all finished rows, each with its difference from the smallest size before it."""
    lines = [
        f"| data, backbone, pixels | n | {' | '.join(METRICS.values())} | training, s | whole run, s | memory, MB |"
    ]
    lines.append("|---" * (lines[0].count("|") - 1) + "|")
    pairs = ["", "| first | minus second | ROC AUC, difference [95 %] |", "|---|---|---|"]
    done = [row for row in ROWS if (out / row.name / "1.json").exists()]
    runs = {row.name: Predictions.read(out / row.name / "1") for row in done}
    for row in done:
        run, note = runs[row.name], json.loads((out / row.name / "1.json").read_text())
        results = json.loads((out / row.name / "1" / "results.json").read_text())
        cells = [row.name.removeprefix("sizes/"), str(len(run.labels))]
        cells += [show(average([run], metric)) for metric in METRICS]
        cells += [f"{results['train_seconds']:.0f}", f"{note['seconds']:.0f}", f"{results['peak_memory_mb']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
        first = next(other for other in done if other.name.rpartition("/")[0] == row.name.rpartition("/")[0])
        if first is not row:
            change = show(difference([run], [runs[first.name]], "roc_auc"), "+")
            pairs.append(f"| {row.name.removeprefix('sizes/')} | {first.name.rpartition('/')[2]} | {change} |")
    commands = ["", "```", *(row.command(1) for row in done), "```", ""]
    return "\n".join([*lines, *pairs, *commands])


if __name__ == "__main__":
    main(ROWS, table, __doc__)
