"""Ways by which a model folder is used, each tried on hostile folders in a process that records what they touch."""

import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

EVENTS: list[str] = []


def record(bait: Path) -> None:
    """Record files of the bait that are opened, connections, processes and unpickled globals from now on."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if path.startswith(str(bait)):
                EVENTS.append(f"opened {path}")
        elif event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "pickle.find_class"):
            EVENTS.append(f"{event} {arguments[-1]}"[:200])
            if event.startswith("socket."):
                raise OSError("there is no network here")

    sys.addaudithook(hook)


def memory(key: str = "VmRSS") -> int:
    """Return the memory in use by this process in MB; VmHWM is its peak."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition(f"{key}:")[2].split()[0]) // 1000


def routes(folder: Path, run: Path, data: Path, out: Path) -> dict[str, Callable[[], object]]:
    """Return what is done with the folder, by name."""
    from transformers import AutoModelForImageClassification, AutoModelForSemanticSegmentation

    from hf_medtl.common.run_folder import RunFolder
    from hf_medtl.export.export import export_run
    from hf_medtl.models.build import build_classifier
    from hf_medtl.models.segmenter import build_segmenter
    from hf_medtl.predict import Predictor
    from hf_medtl.publish.hub import plan_upload
    from hf_medtl.report.build import write_report
    from hf_medtl.runs.compare import measure_costs
    from hf_medtl.runs.ensemble import ensemble
    from hf_medtl.runs.evaluate import evaluate_model
    from hf_medtl.runs.explain import explain_model
    from hf_medtl.space.registry import ModelRegistry

    image = next(data.rglob("*.png"))
    labels = ("no_lesion", "lesion")
    config = folder / "config.json"
    segments = config.is_file() and "SemanticSegmentation" in config.read_text(encoding="utf-8")
    auto: Any = AutoModelForSemanticSegmentation if segments else AutoModelForImageClassification
    build: Any = build_segmenter if segments else build_classifier

    def predict() -> None:
        (prediction,) = Predictor.from_pretrained(folder, device="cpu").predict([image])
        if prediction.error:
            raise OSError(f"prediction: {prediction.error}")

    return {
        "auto": lambda: auto.from_pretrained(folder, use_safetensors=True),
        "predictor": predict,
        "train": lambda: build(str(folder), labels),
        "space": lambda: ModelRegistry([str(folder)], device="cpu"),
        "evaluate": lambda: evaluate_model(str(folder), "brain-phantoms", str(data), out=out / "ev", dry_run=True),
        "compare": lambda: measure_costs({"hostile": RunFolder(folder).check_finished()}, None),
        "report": lambda: write_report([folder], out / "report.html", None, None, [], ""),
        "export": lambda: export_run(folder, "onnx", out=out / "onnx", data_dir=data),
        "push": lambda: plan_upload(folder, {}),
        "ensemble": lambda: ensemble([folder, run], out / "ensemble"),
        "explain": lambda: explain_model(str(folder), out=out / "explanations", data_dir=data),
    }


def attempt(use: Callable[[], object]) -> dict[str, Any]:
    """Return what came of one use: the error's class and message, what it touched, and its seconds."""
    from hf_medtl.errors import MedtlError

    EVENTS.clear()
    started, outcome = time.monotonic(), {"error": "", "message": "", "trace": ""}
    try:
        use()
    except BaseException as error:
        plain = isinstance(error, MedtlError)
        outcome = {"error": type(error).__name__, "message": str(error)}
        outcome["trace"] = "" if plain else "".join(traceback.format_exception(error)[-6:])
    return outcome | {"events": [*EVENTS], "seconds": time.monotonic() - started}


def run_kinds(root: Path, run: Path, data: Path, plan: Mapping[str, Sequence[str]], results: Path) -> None:
    """Write one JSON line for each kind and route; each kind is tried in a process of its own.

    Args:
        root: Folder of the hostile folders, of their bait, and of a copy of the run, `clean`.
        run: Finished run.
        data: Its images.
        plan: Kind -> names of its routes.
        results: File of the lines: kind, route, error, message, trace, events, canary, seconds and memory (MB above the
            start).
    """
    record((root / "bait").resolve())
    for name in ("predictor", "compare", "report", "push"):  # so that the processes share what is imported
        attempt(routes(root / "clean", run, data, root / "warm")[name])
    for kind, names in plan.items():
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            resource.setrlimit(resource.RLIMIT_DATA, ((memory() + 4000) * 10**6,) * 2)
            out, before = root / "out" / kind, memory()
            out.mkdir(parents=True)
            for name in names:
                Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts again
                outcome = attempt(routes(root / kind, run, data, out)[name])
                outcome |= {"kind": kind, "route": name, "memory": memory("VmHWM") - before}
                outcome["canary"] = (root / "bait" / "canary.txt").exists()
                (root / "bait" / "canary.txt").unlink(missing_ok=True)
                with results.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(outcome) + "\n")
            os._exit(0)
        if status := os.waitpid(child, 0)[1]:
            with results.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"kind": kind, "route": "process", "error": f"status {status}"}) + "\n")


def run_plan() -> None:
    """Run the plan of `plan.json` in the folder of the first argument; the others are the run and its images."""
    root, run, data = map(Path, sys.argv[1:4])
    plan = json.loads((root / "plan.json").read_text(encoding="utf-8"))
    run_kinds(root, run, data, plan, root / "outcomes.jsonl")
