"""Model folders of strangers run no code, open no other file, call no network, and give one plain error or work."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support.hostile_folders import KINDS, Bait, write_families, write_hostile

# Kinds that are loaded as if nothing was wrong, since nothing hostile in them is ever looked at.
HARMLESS = (
    "name_or_path", "pipelines", "code_in_config", "code_in_processor", "loose_code", "pickles", "html_label",
    "templates", "results_of_other_types", "recipe_with_tags", "nested_results", "timm_sources",
)  # fmt: skip
# Kinds in which other files than the model's are hostile.
RUN_KINDS = ("link_of_card", "link_of_results", "nested_results", "results_of_other_types", "recipe_with_tags")
LOADING = ("predictor", "train", "space", "evaluate", "compare", "ensemble", "explain", "export")
ALLOWED_MEMORY = 1000  # MB


def _routes(kind: str) -> list[str]:
    """Return the ways by which a folder is used that have anything to do with what is hostile in it."""
    routes = ["predictor", "space"] if kind in HARMLESS else [*LOADING]
    if kind.startswith(("outliers", "threshold", "conformal", "silly_dtype")):  # neither looks at these
        routes = [route for route in routes if route not in ("ensemble", "explain")]
    if kind in RUN_KINDS:
        routes += [route for route in ("compare", "ensemble", "report") if route not in routes]
    # Stock classes are the business of `transformers`, apart from what timm would open and call for them.
    if KINDS[kind][0] != "vit" or kind in (*HARMLESS, "backbone_of_timm", "backbone_checkpoint_path"):
        routes.append("auto")
    return [*routes, "push"]


@pytest.fixture(scope="module")
def outcomes(process_pool, finished_run: Path, phantoms: Path, tmp_path_factory) -> dict[tuple[str, str], dict]:
    """Return what came of each kind and route."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not tell the memory of a process in /proc")
    root = tmp_path_factory.mktemp("hostile")
    write_families(root / "families", ("no_lesion", "lesion"))
    bait = Bait.write(root / "bait", finished_run)
    shutil.copytree(finished_run, root / "clean")
    for kind in KINDS:
        write_hostile(kind, root, finished_run, bait)
    plan = {kind: _routes(kind) for kind in KINDS}
    code = "from tests.support.hostile_routes import run_plan; run_plan()"
    (root / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    done = process_pool.run_code(code, root, finished_run, phantoms)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (root / "outcomes.jsonl").read_text(encoding="utf-8").splitlines()
    found = {(line["kind"], line["route"]): line for line in map(json.loads, lines)}
    assert set(found) == {(kind, route) for kind, routes in plan.items() for route in routes}, done.stderr[-3000:]
    return found


def test_nothing_runs_and_nothing_else_is_opened(outcomes):
    touched = {key: line["events"] for key, line in outcomes.items() if line["events"]}
    assert not touched
    assert not [key for key, line in outcomes.items() if line["canary"]]


def test_memory_stays_below_one_gigabyte(outcomes):
    assert not {key: line["memory"] for key, line in outcomes.items() if line["memory"] > ALLOWED_MEMORY}


def test_each_use_gives_one_plain_error_or_works(outcomes):
    for (kind, route), line in outcomes.items():
        if route == "auto" and line["error"]:
            continue  # of `transformers`, of any class
        assert line["error"] in ("", "MedtlError"), f"{kind}, {route}: {line['trace']}"
        assert line["message"].isprintable(), f"{kind}, {route}: {line['message']!r}"


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_models_are_refused_and_others_work(outcomes, kind):
    errors = {route: line["message"] for (name, route), line in outcomes.items() if name == kind}
    assert bool(errors["predictor"]) == (kind not in HARMLESS), errors["predictor"]
    if kind in HARMLESS and kind not in RUN_KINDS:
        assert not any(errors.values()), errors
