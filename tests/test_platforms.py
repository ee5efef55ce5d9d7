"""Training without modules and functions that only some systems have, and with processes that are spawned."""

import ast
import os
import pickle
import platform
import runpy
import signal
import sys
from types import SimpleNamespace

import pytest
import torch

from hf_medtl.common import system
from hf_medtl.runs.train import _set_up_cpu
from hf_medtl.training import distributed, runtime
from tests.support.commands import ROOT

POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}


def test_posix_modules_are_imported_where_they_are_used():
    for path in (ROOT / "hf_medtl").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not POSIX_MODULES & {*names}, path


def test_memory_is_measured_without_the_module_resource(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # import raises ImportError, as on Windows
    module = runpy.run_path(runtime.__file__)
    assert 10 < module["peak_memory_mb"](torch.device("cpu")) < 1e6


def test_memory_and_name_are_those_of_the_device_that_trains(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 5_000_000, raising=False)
    assert runtime.device_name(torch.device("mps")) == "MPS (arm64)"
    assert runtime.peak_memory_mb(torch.device("mps")) == 5
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *args: "NVIDIA H200")
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda: 7_000_000)
    assert runtime.device_name(torch.device("cuda", 0)) == "NVIDIA H200"
    assert runtime.peak_memory_mb(torch.device("cuda", 0)) == 7
    assert runtime.environment("no", 1, torch.device("cpu"))["device"] == "CPU (arm64)"
    monkeypatch.setattr(runtime, "PACKAGES", ("torch", "absent-package"))
    assert set(runtime.environment("no", 1)["packages"]) == {"hf_medtl", "torch"}


def test_cores_and_workers_without_functions_of_linux(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert system.cores() == os.cpu_count()
    monkeypatch.delattr(signal, "sigwaitinfo", raising=False)
    monkeypatch.delattr(signal, "pthread_sigmask", raising=False)
    handler, called = signal.getsignal(signal.SIGINT), []
    try:
        distributed._init_worker(os.getpid(), called.append, 3)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert called == [3]
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert runtime.keep_freed_memory() is False


def test_spawned_workers_give_the_same_batches(make_trainer):
    """Windows and macOS cannot fork: what goes to a worker must be pickled."""
    batches = {}
    for context in ("spawn", None):
        trainer = make_trainer(
            augmentation="brain",
            dataloader_num_workers=1 if context else 0,
            dataloader_multiprocessing_context=context,
            per_device_train_batch_size=32,
        )
        torch.manual_seed(0)
        loader = trainer.get_train_dataloader()
        pickle.dumps((loader.dataset, loader.collate_fn, loader.worker_init_fn))
        batches[context] = next(iter(loader))["pixel_values"]
    assert torch.equal(batches["spawn"], batches[None])


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "KMP_BLOCKTIME"])
def test_openmp_waits_passively_unless_the_user_chose(monkeypatch, name):
    for variable in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME"):
        monkeypatch.delenv(variable, raising=False)
    system.wait_passively()
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["KMP_BLOCKTIME"]) == ("PASSIVE", "0")
    for variable in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME"):
        del os.environ[variable]
    monkeypatch.setenv(name, "7")
    system.wait_passively()
    assert [os.environ.get(v) for v in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME")].count(None) == 1


def test_threads_that_the_user_of_accelerate_chose_are_kept(monkeypatch):
    chosen: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    recipe = SimpleNamespace(device=torch.device("cpu"))
    launcher = {"OMP_NUM_THREADS": "1"}
    monkeypatch.setattr("psutil.Process", lambda pid: SimpleNamespace(environ=lambda: launcher))
    _set_up_cpu(recipe)
    assert chosen == []
    launcher.clear()
    _set_up_cpu(recipe)
    assert chosen == [system.cores()]
