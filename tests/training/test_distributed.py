"""Distributed training: results equal to a single process, signals, and resuming after kills."""

import json
import math
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import TrainingArguments, ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_medtl import MedtlError, Recipe
from hf_medtl.data.phantoms import write_phantoms
from hf_medtl.runs.folder import check_shared_folder
from hf_medtl.training.checkpoints import find_checkpoint, find_damage
from hf_medtl.training.distributed import StepShardSampler, split_evenly
from tests.support.commands import flags, options, run_command
from tests.support.process_pool import ForkedProcess, ProcessPool, free_port

LABELS = ("no_lesion", "lesion")


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> Path:
    """Return a tiny ViT without dropout and batch statistics, which differ by process."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("backbones") / "vit"
    layers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=2, **layers)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


# ---- sharding


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (5, 1), (4, 3), (2, 5), (3, 2)])
def test_sharded_steps_have_the_images_of_a_single_process(batch, accumulation, processes):
    epoch = torch.tensor(0)
    size, rounds = split_evenly(batch, accumulation, processes)
    assert size <= batch
    assert processes * size * rounds >= batch * accumulation > processes * (size - 1) * rounds
    for number in range(1, 40):
        order = np.random.default_rng(number).permutation(number).tolist()
        shards = [
            StepShardSampler(order, number, batch * accumulation, size, rank, processes, epoch)
            for rank in range(processes)
        ]
        batches = [list(shard) for shard in shards]
        assert (
            {len(shard_batches) for shard_batches in batches} == {len(shard) for shard in shards} == {len(batches[0])}
        )
        # Trainer counts optimizer steps like this: the last one of an epoch gets the remaining images.
        steps = [
            [b for shard_batches in batches for b in shard_batches[i : i + rounds]]
            for i in range(0, len(batches[0]), rounds)
        ]
        assert len(steps) == math.ceil(number / (batch * accumulation))
        for i, step in enumerate(steps):
            real = [index for rank_batch in step for index in rank_batch if index >= 0]
            assert sorted(real) == sorted(order[i * batch * accumulation : (i + 1) * batch * accumulation])
            assert max(map(len, step)) <= size
            assert all(len(rank_batch) == 1 for rank_batch in step if rank_batch[0] < 0)
            sizes = [len(rank_batch) if rank_batch[0] >= 0 else 0 for rank_batch in step]
            assert max(sizes) - min(sizes) <= 1


def test_rejects_more_processes_than_images():
    assert split_evenly(8, 1, 8) == (1, 1)
    with pytest.raises(MedtlError, match="9 processes cannot share the 8 image"):
        split_evenly(8, 1, 9)


def test_multiple_gpus_without_launcher_keep_the_batch(monkeypatch, tmp_path, caplog):
    class Four:
        def __get__(self, recipe, owner=None):
            if recipe is not None and not hasattr(recipe, "counted"):
                recipe._n_gpu, recipe.counted = 4, True
            return torch.device("cpu")

    monkeypatch.setattr(TrainingArguments, "_setup_devices", Four())
    monkeypatch.setattr(Recipe, "world_size", 1)
    recipe = Recipe(output_dir=str(tmp_path), per_device_train_batch_size=8)
    assert (recipe.n_gpu, recipe.train_batch_size) == (1, 8)
    assert "Only one of 4 GPUs is used" in caplog.text


def test_rejects_jit_checkpoint_and_distributed_auto_batch_size(tmp_path, monkeypatch):
    with pytest.raises(MedtlError, match="SIGTERM always writes a checkpoint"):
        Recipe(output_dir=str(tmp_path), use_cpu=True, enable_jit_checkpoint=True)
    monkeypatch.setattr(Recipe, "world_size", 2)
    with pytest.raises(MedtlError, match="only works with one process"):
        Recipe(output_dir=str(tmp_path), use_cpu=True, auto_find_batch_size=True)


def test_rejects_output_dir_not_shared_by_machines(tmp_path):
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen" / "UNFINISHED").touch()
    check_shared_folder(tmp_path / "seen")
    with pytest.raises(MedtlError, match="on a disk that all machines share"):
        check_shared_folder(tmp_path / "unseen", patience=0)


# ---- equal results


def read_log(run: Path) -> list[dict]:
    newest = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))
    return json.loads((newest / "trainer_state.json").read_text())["log_history"]


def assert_equal_runs(one: Path, many: Path, least: int) -> None:
    """Assert equal loss curves, evaluations, weights, results and recipe.yaml.

    Args:
        one: run folder of one process.
        many: run folder of more processes.
        least: minimum number of losses in the curve.
    """
    log, log2 = read_log(one), read_log(many)
    losses = [row["loss"] for row in log if "loss" in row]
    assert len(losses) >= least
    assert max(losses) - min(losses) > 1e-3  # the loss has changed
    for row, row2 in zip(log, log2, strict=True):
        # Trainer computes the epoch from batches, whose size may differ with accumulation.
        timeless = {name for name in row if name != "epoch" and not name.endswith(("_runtime", "_per_second"))}
        assert row.keys() == row2.keys()
        for name in timeless:
            assert row[name] == pytest.approx(row2[name], abs=1e-4, nan_ok=True), (row["step"], name)
    weights, weights2 = (load_file(run / "model.safetensors") for run in (one, many))
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, weights2[name], rtol=0, atol=1e-4, msg=name)
    result, result2 = (json.loads((run / "results.json").read_text()) for run in (one, many))
    assert result2["environment"]["processes"] > result["environment"]["processes"] == 1
    rows, rows2 = (pd.read_csv(run / "predictions.csv") for run in (one, many))
    pd.testing.assert_frame_equal(rows, rows2, rtol=0, atol=1e-4)
    scores = rows.filter(like="p_").to_numpy()
    tied = scores.size and np.diff(np.sort(scores, axis=0), axis=0).min() < 1e-4  # rounding decides their order
    for name, metric in result["metrics"].items():
        if not (tied and name in ("roc_auc", "average_precision", "ece")):
            assert metric == pytest.approx(result2["metrics"][name], abs=1e-4, nan_ok=True), name
    assert (one / "recipe.yaml").read_text() == (many / "recipe.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "batch", "accumulation"),
    [(2, 10, 1), (3, 1, 9)],
    ids=["an odd batch at the end", "accumulated, fewer pictures at the end than processes"],
)
def test_distributed_training_matches_one_process(
    processes, batch, accumulation, process_pool, phantoms, vit, tmp_path
):
    for count in (1, processes):
        values = options(phantoms, vit, tmp_path / f"run{count}", learning_rate=3e-3, logging_steps=1,
                         per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
                         per_device_eval_batch_size=3)  # fmt: skip
        process_pool.run(tmp_path / f"log{count}", *flags(**values), processes=count)
    assert_equal_runs(tmp_path / "run1", tmp_path / f"run{processes}", least=6)
    assert yaml.safe_load((tmp_path / "run1" / "recipe.yaml").read_text())["per_device_train_batch_size"] == batch
    output = (tmp_path / f"log{processes}.0").read_text()
    assert f"batch size {batch * accumulation} ({processes} process(es) x " in output


# Batch means differ by process; each image on its own gives equal results.
NO_BATCH_STATISTICS = """
import torch
torch.nn.BatchNorm2d.forward = lambda self, x: torch.nn.functional.group_norm(x, 1, self.weight, self.bias)
"""


@pytest.mark.slow
def test_segmentation_in_two_processes_matches_one(process_pool, tmp_path):
    data = write_phantoms(tmp_path / "chest", "chest", patients=15, images=1, size=64)
    for count in (1, 2):
        values = options(data, Path("unet"), tmp_path / f"run{count}", dataset="chest-phantoms", logging_steps=1,
                         task="image-segmentation", encoder="tu-test_convnext", encoder_weights="none", image_size=64,
                         loss="bce_dice", learning_rate=1e-3, per_device_train_batch_size=4,
                         per_device_eval_batch_size=1, num_train_epochs=1)  # fmt: skip
        process_pool.run(tmp_path / f"log{count}", *flags(**values), processes=count, code=NO_BATCH_STATISTICS)
    assert_equal_runs(tmp_path / "run1", tmp_path / "run2", least=2)


@pytest.mark.slow
def test_multilabel_in_two_processes_matches_one(process_pool, vit, tmp_path):
    rows = []
    for i in range(30):
        pixels = np.random.default_rng(i).integers(0, 120, (32, 32), dtype=np.uint8)
        cell = ("", "bar", "disc", "bar | disc", "")[i % 5]
        pixels[2:8] += 100 * ("bar" in cell)
        pixels[20:28, 10:20] += 100 * ("disc" in cell)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "label": cell, "patient": f"p{i}"})
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    for count in (1, 2):
        values = options(tmp_path / "table.csv", vit, tmp_path / f"run{count}", dataset="table", learning_rate=3e-3,
                         logging_steps=1, per_device_train_batch_size=7, per_device_eval_batch_size=2)  # fmt: skip
        process_pool.run(tmp_path / f"log{count}", *flags(**values), processes=count)
    assert_equal_runs(tmp_path / "run1", tmp_path / "run2", least=4)


# ---- signals and kills

WORKERS = """
import multiprocessing, os, sys, time
from accelerate import Accelerator
from torch.utils.data import DataLoader
from hf_medtl.training.distributed import keep_workers
def loader():
    rows = DataLoader(range(100), num_workers=1)
    return keep_workers(Accelerator(cpu=True).prepare(rows) if sys.argv[1] == "prepared" else rows)
rows = iter(loader())
next(rows)
(worker,) = multiprocessing.active_children()
for name in ("INT", "TERM"):
    os.system(f"kill -{name} {worker.pid}")
time.sleep(0.5)
assert sum(1 for row in rows) == 99, "the worker died"
rows = iter(loader())
next(rows)
raise RuntimeError("training failed")
"""


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["plain", "prepared"])
def test_workers_survive_signals_but_not_the_run(loader):
    """A worker that ignored SIGTERM would keep a failing run alive: multiprocessing waits for its workers.

    Trainer's loader is prepared by accelerate, whose class wraps the one that starts the workers.
    """
    process = run_command(sys.executable, "-c", WORKERS, loader, timeout=600)
    assert process.returncode == 1
    assert process.stderr.strip().endswith("RuntimeError: training failed"), process.stderr


def signal_at(step: int, number: int, rank: str = "0") -> str:
    """Return code that sends a signal to the process and its data loader's workers after an optimizer step.

    Args:
        step: optimizer step.
        number: signal number.
        rank: rank of the process that gets it.
    """
    return f"""
import os, time
from hf_medtl.training.callbacks import Progress
before = Progress.on_step_end
def on_step_end(self, args, state, control, **kwargs):
    if state.global_step == {step} and rank == {rank}:
        os.system(f"kill -{number} -{{os.getpgrp()}}; kill -{number} -{{os.getpgrp()}}")
        until = time.monotonic() + 30
        while {number} and not self.received and time.monotonic() < until:  # a signal may arrive late
            time.sleep(0.001)
    return before(self, args, state, control, **kwargs)
Progress.on_step_end = on_step_end
"""


def equal_weights(one: Path, other: Path) -> bool:
    weights, weights2 = (load_file(run / "model.safetensors") for run in (one, other))
    return weights.keys() == weights2.keys() and all(torch.equal(weights[name], weights2[name]) for name in weights)


@pytest.fixture(scope="module")
def arguments(phantoms, vit):
    """Return flags of a run that evaluates and saves after each epoch of 3 steps."""

    def make_flags(output: Path, *extra: str) -> list[str]:
        return [*flags(**options(phantoms, vit, output, learning_rate=3e-3, per_device_train_batch_size=12,
                                 dataloader_num_workers=1)), *extra]  # fmt: skip

    return make_flags


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "step"), [(1, 2), (1, 3), (2, 4)])
def test_sigterm_writes_a_checkpoint_that_resumes_to_the_same_weights(
    processes, step, process_pool, arguments, tmp_path
):
    """The signal comes in the middle of an epoch, at its end, and to one of two processes."""
    process_pool.run(tmp_path / "log", *arguments(tmp_path / "through"), processes=processes)
    code = signal_at(step, signal.SIGTERM, str(processes - 1))
    pids = process_pool.start(tmp_path / "log", *arguments(tmp_path / "run"), processes=processes, code=code)
    assert process_pool.wait(pids) == [128 + signal.SIGTERM] * processes, (tmp_path / "log.0").read_text()
    assert "--resume_from_checkpoint auto" in (tmp_path / "log.0").read_text()
    assert find_checkpoint("auto", tmp_path / "run", LABELS) == str(tmp_path / "run" / f"checkpoint-{step}")
    assert (tmp_path / "run" / "UNFINISHED").exists()
    resume = arguments(tmp_path / "run", "--resume_from_checkpoint", "auto")
    process_pool.run(tmp_path / "log", *resume, processes=processes)
    assert equal_weights(tmp_path / "through", tmp_path / "run")
    evaluated, evaluated2 = (
        [(row["step"], row["eval_loss"]) for row in read_log(tmp_path / name) if "eval_loss" in row]
        for name in ("through", "run")
    )
    assert evaluated == evaluated2  # evaluated only after epochs, and after each


@pytest.mark.slow
def test_resumes_on_another_number_of_processes(process_pool, arguments, tmp_path):
    process_pool.run(tmp_path / "log", *arguments(tmp_path / "run1"))
    code = signal_at(4, signal.SIGTERM, "1")
    pids = process_pool.start(tmp_path / "log", *arguments(tmp_path / "run2"), processes=2, code=code)
    assert process_pool.wait(pids) == [143, 143]
    process_pool.run(tmp_path / "log", *arguments(tmp_path / "run2", "--resume_from_checkpoint", "auto"))
    weights, weights2 = (load_file(tmp_path / run / "model.safetensors") for run in ("run1", "run2"))
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, weights2[name], rtol=0, atol=1e-4, msg=name)


@pytest.mark.slow
def test_resumes_after_twenty_kills_at_random_times(process_pool, phantoms, vit, tmp_path):
    """Half of the kills come while a checkpoint is being written."""

    def start(output: Path, *extra: str) -> list[int]:
        values = options(phantoms, vit, output, learning_rate=3e-3, per_device_train_batch_size=6, num_train_epochs=80,
                         save_strategy="steps", eval_strategy="steps", save_steps=5, eval_steps=5, logging_steps=1,
                         early_stopping_patience=0)  # fmt: skip
        return process_pool.start(tmp_path / "log", *flags(**values), *extra)

    def newest_step() -> int:
        """Return the step of the newest checkpoint, finished or not; older ones are deleted meanwhile."""
        return max((int(path.name.removeprefix("checkpoint-")) for path in output.glob("checkpoint-*")), default=0)

    assert process_pool.wait(start(tmp_path / "through")) == [0]
    rng, output, torn = random.Random(0), tmp_path / "run", 0
    for kill in range(20):
        wanted = newest_step() + 5 * rng.randint(1, 2)
        (pid,) = start(output, "--resume_from_checkpoint", "auto")
        began = time.monotonic()
        while newest_step() < wanted:
            assert time.monotonic() < began + 600, (tmp_path / "log.0").read_text()
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.02) if kill % 2 else rng.uniform(0, 0.2))
        os.kill(pid, signal.SIGKILL)
        assert process_pool.wait([pid]) == [-signal.SIGKILL], (tmp_path / "log.0").read_text()
        torn += find_damage(output / f"checkpoint-{newest_step()}") is not None
    assert torn >= 3
    assert process_pool.wait(start(output, "--resume_from_checkpoint", "auto")) == [0], (tmp_path / "log.0").read_text()
    assert equal_weights(tmp_path / "through", output)


STANDS_STILL = """
import sys, time, torch
from hf_medtl import Recipe
from hf_medtl.common.system import explain_shortage
Recipe(output_dir=sys.argv[1], use_cpu=True, ddp_timeout=1, report_to="none")
torch.distributed.barrier()
time.sleep(60 * rank)
try:
    torch.distributed.barrier()
except RuntimeError as error:
    sys.exit(explain_shortage(error))
"""


def test_process_that_stands_still_is_not_waited_for(process_pool, tmp_path):
    """Transformers leaves the timeout out on CPUs: it was half an hour whatever the option."""
    log, argv = str(tmp_path / "log.{rank}"), ["-c", str(tmp_path / "run")]
    pids = process_pool.ask(stdout=log, stderr=log, argv=argv, processes=2, code=STANDS_STILL)
    waiting, still = (ForkedProcess(process_pool, pid) for pid in pids)
    try:
        assert waiting.wait(50) == 1
    finally:
        still.kill()
        still.wait()
    assert "Another process of this job has stopped, or is too slow" in (tmp_path / "log.0").read_text("utf-8")


# ---- through accelerate's launcher, with the files of recipes/accelerate


LAUNCHER = """
import runpy, sys
sys.argv[0] = "launch"
runpy.run_module("accelerate.commands.launch", run_name="__main__")
"""


def launch(
    pool: ProcessPool, file: str, folder: Path, arguments: list[str], *extra: str, code: str = ""
) -> ForkedProcess:
    """Launch a recipe that executes `code` first; its output goes to `folder`/launcher*.txt."""
    recipe = folder / "recipe.py"
    recipe.write_text(f"import os\nrank = int(os.environ['RANK'])\n{code}\nfrom hf_medtl import main\nmain({{}})\n")
    log = folder / f"launcher{'-'.join(extra[:2])}.txt"
    words = ["--config_file", f"recipes/accelerate/{file}.yaml", *extra, recipe, *arguments]
    return pool.start_code(LAUNCHER, *words, stdout=log, stderr=log)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("crash", "message"),
    [
        ("from hf_medtl import MedtlError; raise MedtlError('The scanner is broken.')", "The scanner is broken."),
        ("os.kill(os.getpid(), 9)", "Signal 9 (SIGKILL)"),
    ],
    ids=["an error", "killed"],
)
def test_crashed_process_ends_the_others_and_is_named(crash, message, process_pool, arguments, tmp_path):
    """If the launcher did not stop them, the other processes would wait half an hour for gradients."""
    code = signal_at(3, 0, "1").replace("os.system(", f"{crash}; (", 1)
    own = arguments(tmp_path / "run")
    process = launch(process_pool, "one_machine", tmp_path, own, "--main_process_port", "0", code=code)
    assert process.wait(timeout=900) == 1
    output = (tmp_path / "launcher--main_process_port-0.txt").read_text()
    assert message in output
    cause = output[output.index("Root Cause") :]
    assert "rank      : 1 (local_rank: 1)" in cause
    assert message in cause
    assert (tmp_path / "run" / "UNFINISHED").exists()


@pytest.mark.slow
def test_launcher_forwards_sigterm(process_pool, arguments, tmp_path):
    code = signal_at(2, signal.SIGTERM).replace("os.system(", f"os.kill(os.getppid(), {signal.SIGTERM}); (", 1)
    own = arguments(tmp_path / "run")
    process = launch(process_pool, "cpu", tmp_path, own, "--main_process_port", "0", code=code)
    assert process.wait(timeout=900) == 1
    output = (tmp_path / "launcher--main_process_port-0.txt").read_text()
    assert "death signal, shutting down workers" in output
    assert "Interrupted. A checkpoint is in" in output
    assert find_checkpoint("auto", tmp_path / "run", LABELS) is not None


@pytest.mark.slow
def test_two_machines_match_a_single_process(process_pool, phantoms, vit, tmp_path):
    def values(name: str) -> list[str]:
        return flags(**options(phantoms, vit, tmp_path / name, learning_rate=3e-3, logging_steps=1,
                               per_device_train_batch_size=10, per_device_eval_batch_size=3))  # fmt: skip

    process_pool.run(tmp_path / "log", *values("one"))
    port_flags = ("--num_processes", "2", "--main_process_port", str(free_port()))
    both = [
        launch(process_pool, "two_machines", tmp_path, values("two"), "--machine_rank", str(rank), *port_flags)
        for rank in range(2)
    ]
    codes = [process.wait(timeout=900) for process in both]
    assert codes == [0, 0], "\n".join(path.read_text()[-3000:] for path in tmp_path.glob("launcher*.txt"))
    assert_equal_runs(tmp_path / "one", tmp_path / "two", least=6)
