"""Fuzzing: mutated files of users are refused in one plain line, or read to a right-looking value.

`make test` reads a few inputs, `make fuzz` as many for each target as HF_MEDTL_FUZZ says, drawn from
HF_MEDTL_FUZZ_SEED.
"""

import os
import sys

import pytest

from tests.fuzz.targets import run_targets, targets
from tests.support.fuzz_worker import describe, fuzz

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="limits and measures memory as Linux does"),
]
NUMBER = int(os.environ.get("HF_MEDTL_FUZZ", "0"))
SEED = int(os.environ.get("HF_MEDTL_FUZZ_SEED", "0"))
NAMES = [target.name for target in targets()]
RUN_NAMES = ["run folder", "compare", "report", "card check", "predictor"]


def check(target, folder, few):
    findings = fuzz(target, folder, NUMBER or few, SEED)
    lines = [*describe(target, findings)]
    print(lines[0])
    assert not findings.failures, "\n".join(lines)


@pytest.mark.parametrize("name", NAMES)
def test_files(name, tmp_path):
    target = next(target for target in targets() if target.name == name)
    check(target, tmp_path, 8 if name.startswith(("survey", "medmnist")) else 40)


@pytest.mark.parametrize("name", RUN_NAMES)
def test_files_of_runs(name, tmp_path, finished_run):
    target = next(target for target in run_targets(finished_run) if target.name == name)
    check(target, tmp_path, 20 if name in ("run folder", "card check") else 2)
