"""The measured table: recipes on real data, with intervals, paired differences, seconds and memory.

    python benchmarks/results.py --data DIR --weights DIR --out runs/results           # all rows: hours on a CPU
    python benchmarks/results.py --data DIR --weights DIR --out runs/results --only brain/vit-s/full
    python benchmarks/results.py --out runs/results --table                            # the table of what is there

DIR of --data has the data sets under their Kaggle names, DIR of --weights the backbones' folders. Finished runs are
not run again, so it goes on where it was stopped. The table goes to --out/RESULTS.md; runs are in --out/ROW/SEED.
"""

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from comparison import Predictions, average, difference

from hf_medtl.common.system import cores
from hf_medtl.evaluation.intervals import Interval

ROOT = Path(__file__).parents[1]
BACKBONES = ("vit-s", "resnet50", "lite0")
VIT, RESNET, LITE = "vit-small-patch14-224", "resnet50-in1k", "tf_efficientnet_lite0-in1k"


@dataclass(frozen=True)
class Row:
    """A recipe with its flags, run once for each seed."""

    name: str
    data: str
    recipe: str
    flags: str
    seeds: tuple[int, ...]

    def command(self, seed: int) -> str:
        """Return the command, with the folders left open."""
        flags = f"--data_dir DATA/{self.data} {self.flags} --seed {seed}"
        return f"python recipes/{self.recipe}.py {' '.join(flags.split())}"


def brain(name: str, recipe: str, flags: str, seeds: tuple[int, ...] = (1, 2, 3)) -> Row:
    return Row(f"brain/{name}", "brain-mri-images-for-brain-tumor-detection", recipe, flags, seeds)


def pneumonia(name: str, flags: str) -> Row:
    return Row(f"pneumonia/{name}", "chest-xray-pneumonia", "resnet50_pneumonia", flags, (1,))


def covid(name: str, recipe: str, flags: str) -> Row:
    return Row(f"covid/{name}", "covid19-radiography-database", recipe, flags, (1,))


VIT_S = f"--config recipes/vit_brain_small.yaml --model_name_or_path WEIGHTS/{VIT} --mixed_precision bf16"
RESNET_50 = f"--model_name_or_path WEIGHTS/{RESNET} --mixed_precision bf16"
LITE_0 = f"--model_name_or_path WEIGHTS/{LITE}"
# What the ViT gets, at the rates of a convolutional network.
AVERAGED = "--config recipes/vit_brain_small.yaml --learning_rate 1e-4 --head_learning_rate 1e-3 --num_train_epochs 15"
FROZEN = "--strategy feature_extraction --num_train_epochs 40"
SCRATCH = "--from_scratch --learning_rate 1e-3 --num_train_epochs 30 --early_stopping_patience 10"

ROWS = [
    brain("vit-s/full", "vit_brain", VIT_S),
    brain("vit-s/lp_ft", "vit_brain", f"{VIT_S} --strategy lp_ft --head_learning_rate 1e-3", (1,)),
    brain("vit-s/feature_extraction", "vit_brain", f"{VIT_S} {FROZEN} --head_learning_rate 1e-3 --mixup 0"),
    brain("resnet50/full", "resnet50_brain", RESNET_50),
    brain("resnet50/lp_ft", "resnet50_brain", f"{RESNET_50} --strategy lp_ft", (1,)),
    brain("resnet50/feature_extraction", "resnet50_brain", f"{RESNET_50} {FROZEN}"),
    brain("lite0/full", "resnet50_brain", LITE_0),
    brain("lite0/full-averaged", "resnet50_brain", f"{AVERAGED} {LITE_0}"),
    brain("lite0/lp_ft", "resnet50_brain", f"{LITE_0} --strategy lp_ft"),
    brain("lite0/feature_extraction", "resnet50_brain", f"{LITE_0} {FROZEN}"),
    brain("lite0/from_scratch", "resnet50_brain", f"{LITE_0} {SCRATCH}"),
    brain("cnn/from_scratch", "cnn_brain", "", (1,)),
    pneumonia("lite0/full", f"{LITE_0} --num_train_epochs 5"),
    pneumonia("resnet50/full", f"{RESNET_50} --num_train_epochs 5"),
    covid("lite0/full", "resnet50_covid4", f"{LITE_0} --num_train_epochs 8"),
    covid("cnn/from_scratch", "cnn_covid4", ""),
]
# Pretrained against from scratch, and the strategies against each other; only where both have the same test images,
# which depend on the share for validation, too.
PAIRS = [
    ("brain/lite0/full", "brain/lite0/from_scratch"),
    ("brain/lite0/full", "brain/cnn/from_scratch"),
    *[(f"brain/{b}/full", f"brain/{b}/{s}") for b in BACKBONES for s in ("lp_ft", "feature_extraction")],
    ("brain/vit-s/full", "brain/lite0/full-averaged"),
    ("brain/resnet50/full", "brain/lite0/full"),
    ("pneumonia/resnet50/full", "pneumonia/lite0/full"),
    ("covid/lite0/full", "covid/cnn/from_scratch"),
]  # fmt: skip
METRICS = {"roc_auc": "ROC AUC", "accuracy": "accuracy", "sensitivity": "sensitivity", "specificity": "specificity"}


def train(row: Row, seed: int, out: Path, data: Path, weights: Path, jobs: int) -> None:
    """One run in a process of its own, unless it is there; SEED.json gets its seconds from outside."""
    folder, note = out / row.name / str(seed), out / row.name / f"{seed}.json"
    if note.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = row.command(seed).replace("DATA/", f"{data}/").replace("WEIGHTS/", f"{weights}/")
    extra = ["--output_dir", str(folder), "--use_cpu", "true", "--disable_tqdm", "true"]
    if "linear_probe" not in command:  # which has no checkpoints
        extra += ["--save_total_limit", "1"]
    print(f"{time.strftime('%H:%M')} {row.name}, seed {seed}", flush=True)
    started = time.monotonic()
    with (out / row.name / f"{seed}.log").open("w") as log:
        arguments = [sys.executable, *shlex.split(command)[1:], *extra]
        threads = {"OMP_NUM_THREADS": str(max(1, cores() // jobs))}
        done = subprocess.run(arguments, cwd=ROOT, env=os.environ | threads, stdout=log, stderr=log, check=False)
    if done.returncode:
        raise RuntimeError(f"{row.name}, seed {seed}, ended with exit code {done.returncode}. See {log.name}.")
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    facts = {"seconds": round(time.monotonic() - started, 1), "command": row.command(seed), "jobs": jobs, **threads}
    note.write_text(json.dumps(facts))


def table(out: Path) -> str:
    """Markdown of all finished rows and pairs."""
    done = {row.name: row for row in ROWS if all((out / row.name / f"{seed}.json").exists() for seed in row.seeds)}
    runs = {n: [Predictions.read(out / n / str(seed)) for seed in row.seeds] for n, row in done.items()}
    lines = ["| # | data, backbone, strategy | n | " + " | ".join(METRICS.values()) + " | ROC AUC of each seed |"]
    lines[0] += " training, s | whole run, s | memory, MB |"
    lines.append("|---" * (lines[0].count("|") - 1) + "|")
    for number, (name, row) in enumerate(done.items(), 1):
        results = [json.loads((out / name / str(seed) / "results.json").read_text()) for seed in row.seeds]
        notes = [json.loads((out / name / f"{seed}.json").read_text()) for seed in row.seeds]
        cells = [str(number), name, " + ".join(str(len(run.labels)) for run in runs[name])]
        cells += [show(average(runs[name], metric)) for metric in METRICS]
        cells.append(" ".join(f"{float(run.metric('roc_auc')):.3f}" for run in runs[name]))
        cells.append(f"{statistics.mean(result['train_seconds'] for result in results):.0f}")
        cells.append(f"{statistics.mean(note['seconds'] for note in notes):.0f}")
        cells.append(f"{max(result['peak_memory_mb'] for result in results):.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| first | minus second | seeds | ROC AUC, difference [95 %] | accuracy, difference [95 %] |",
        "|---|---|---|---|",
    ]
    for one, other in (pair for pair in PAIRS if pair[0] in done and pair[1] in done):
        both = sorted({*done[one].seeds} & {*done[other].seeds})
        first, second = ([runs[name][done[name].seeds.index(seed)] for seed in both] for name in (one, other))
        differences = [show(difference(first, second, metric), "+") for metric in ("roc_auc", "accuracy")]
        lines.append(f"| {one} | {other} | {' '.join(map(str, both))} | {' | '.join(differences)} |")
    lines += ["", "```", *(f"{i} {row.command(row.seeds[0])}" for i, row in enumerate(done.values(), 1)), "```", ""]
    return "\n".join(lines)


def show(interval: Interval, sign: str = "", digits: str = ".3f") -> str:
    """Value [low, high]."""
    value, low, high = (format(number, sign + digits) for number in interval)
    return f"{value} [{low}, {high}]"


def main(rows: list[Row], table: Callable[[Path], str], about: str | None) -> None:
    """Run rows and write their table to --out/RESULTS.md."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--weights", type=Path, help="folder of the backbones")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and of RESULTS.md")
    parser.add_argument("--only", default="", help="rows whose names begin so")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores")
    parser.add_argument("--table", action="store_true", help="run nothing; write the table of what is there")
    options = parser.parse_args()
    if not options.table:
        if not options.data or not options.weights:
            parser.error("--data and --weights are needed to run; --table needs neither")
        wanted = [row for row in rows if row.name.startswith(options.only)]
        paths = [path.resolve() for path in (options.out, options.data, options.weights)]
        with ThreadPoolExecutor(options.jobs) as pool:
            # Seed by seed, so that a table of fewer seeds is whole as early as possible.
            runs = [
                pool.submit(train, row, seed, *paths, options.jobs)
                for seed in sorted({seed for row in wanted for seed in row.seeds})
                for row in wanted
                if seed in row.seeds
            ]
            for done in as_completed(runs):
                done.result()
    text = table(options.out)
    (options.out / "RESULTS.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(ROWS, table, __doc__)
