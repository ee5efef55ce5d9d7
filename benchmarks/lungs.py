"""Lungs outlined: pretrained against from scratch, one hospital against the other, and a third collection.

    python benchmarks/lungs.py --data DIR --weights DIR --out runs/lungs            # all rows: hours on a CPU
    python benchmarks/lungs.py --data DIR --weights DIR --out runs/lungs --only lungs/pretrained
    python benchmarks/lungs.py --out runs/lungs --table                             # the table of what is there

Places and files as for results.py.
"""

import json
from pathlib import Path

import pandas as pd
from comparison import unpaired_difference
from results import LITE, Row, main, show

from hf_medtl.evaluation.intervals import mean_intervals
from hf_medtl.evaluation.masks import MASK_METRICS
from hf_medtl.evaluation.paired import mean_difference

LUNGS = "chest-xray-masks-and-labels"
OTHERS = "--external_dataset covid-chestxray --external_data_dir DATA/covid-chestxray-dataset"
WEIGHTS = f"--encoder_weights WEIGHTS/{LITE}"
HOSPITALS = {"CHNCXR": "Shenzhen", "MCUCXR": "Montgomery"}


def lungs(name: str, flags: str) -> Row:
    return Row(f"lungs/{name}", LUNGS, "unet_lungs", flags, (1, 2, 3))


def one_hospital(name: str, source: str, other: str) -> Row:
    outside = f"--external_dataset lung-masks --external_data_dir DATA/{LUNGS} --external_sources {other}"
    return lungs(name, f"{WEIGHTS} --sources {source} {outside}")


ROWS = [
    lungs("pretrained", f"{WEIGHTS} {OTHERS}"),
    lungs("scratch", "--encoder_weights none --encoder tu-tf_efficientnet_lite0"),
    one_hospital("shenzhen", "CHNCXR", "MCUCXR"),
    one_hospital("montgomery", "MCUCXR", "CHNCXR"),
]
OF_ALL = ("dice", "iou", "hausdorff95")


def read(row: Row, out: Path, name: str = "predictions.csv") -> pd.DataFrame:
    """The images that a row's seeds were tested on, one below the other; an image's group is the same in all."""
    tables = []
    for seed in row.seeds:
        if (out / row.name / f"{seed}.json").exists():
            table = pd.read_csv(out / row.name / str(seed) / name, dtype={"image_id": str, "group": str})
            tables.append(table.assign(image_id=f"{seed}/" + table["image_id"], seed=seed))
    return pd.concat(tables) if tables else pd.DataFrame()


def means(table: pd.DataFrame) -> list[str]:
    """Cells: images, then the metrics with limits."""
    intervals = mean_intervals({name: table[name] for name in OF_ALL}, table["group"], table["source"])
    images = " + ".join(str(n) for n in table.groupby("seed").size())
    digits = {"hausdorff95": ".1f"}
    return [images, *(show(interval, "", digits.get(name, ".3f")) for name, interval in intervals.items())]


def table(out: Path) -> str:
    """Markdown of what is finished."""
    runs = {row.name: (row, read(row, out)) for row in ROWS}
    runs = {name: (row, images) for name, (row, images) in runs.items() if len(images)}
    lines = ["| trained on, encoder | tested on | n | Dice | IoU | 95 % Hausdorff, pixels | Dice of each seed |"]
    lines += ["|---" * 7 + "|"]
    drops, gains = [], []
    for name, (row, inside) in runs.items():
        parts = {"held out": inside}
        if inside["source"].nunique() > 1:
            parts |= {f"held out, {HOSPITALS[source]}": rows for source, rows in inside.groupby("source")}
        if "external" in row.flags:
            outside = read(row, out, "external.csv")
            parts["other data"] = outside
            fall = unpaired_difference(inside, outside, ("dice", "iou"))
            drops.append(f"| {name} | {' | '.join(show(x, '+') for x in fall.values())} |")
        for part, rows in parts.items():
            seeds = " ".join(f"{dice:.3f}" for dice in rows.groupby("seed")["dice"].mean())
            lines.append(f"| {name} | {part} | {' | '.join(means(rows))} | {seeds} |")
        raw = inside.drop(columns=list(MASK_METRICS)).rename(
            columns={f"raw_{metric}": metric for metric in MASK_METRICS}
        )
        gain = mean_difference(inside, raw, OF_ALL, (name, "before"))
        gains.append(f"| {name} | {' | '.join(show(x, '+') for x in gain.values())} |")
    lines += ["", "| held out minus other data | Dice | IoU |", "|---|---|---|", *drops]
    lines += [
        "",
        "| with minus without postprocessing, held out | Dice | IoU | 95 % Hausdorff, pixels |",
        "|---|---|---|---|",
    ]
    lines += gains
    if {"lungs/pretrained", "lungs/scratch"} <= set(runs):
        one, other = (runs[f"lungs/{name}"][1] for name in ("pretrained", "scratch"))
        seeds = sorted({*one["seed"]} & {*other["seed"]})
        one, other = (t[t["seed"].isin(seeds)] for t in (one, other))
        gain = mean_difference(one, other, OF_ALL, ("pretrained", "scratch"))
        lines += [
            "",
            "| pretrained minus scratch, same images | Dice | IoU | 95 % Hausdorff, pixels |",
            "|---|---|---|---|",
        ]
        lines += [f"| seeds {' '.join(map(str, seeds))} | {' | '.join(show(x, '+') for x in gain.values())} |"]
    lines += ["", "| | training, s | whole run, s | memory, MB |", "|---|---|---|---|"]
    for name, (_, images) in runs.items():
        for seed in sorted({*images["seed"]}):
            result = json.loads((out / name / str(seed) / "results.json").read_text())
            note = json.loads((out / name / f"{seed}.json").read_text())
            lines.append(f"| {name}, seed {seed} | {result['train_seconds']:.0f} | {note['seconds']:.0f} | "
                         f"{result['peak_memory_mb']:.0f} |")  # fmt: skip
    lines += ["", "```", *(row.command(row.seeds[0]) for row, _ in runs.values()), "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main(ROWS, table, __doc__)
