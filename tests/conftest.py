"""Shared fixtures. Sets a loopback Hub and empty caches before any Hugging Face module is imported."""

import atexit
import contextlib
import gc
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

_WORK = Path(tempfile.mkdtemp(prefix="hf_medtl-tests-"))
atexit.register(shutil.rmtree, _WORK, ignore_errors=True)
with socket.socket() as _s:
    _s.bind(("127.0.0.1", 0))
    _PORT = _s.getsockname()[1]
os.environ |= {
    "HF_ENDPOINT": f"http://127.0.0.1:{_PORT}",
    "HF_TOKEN": "hf_ci",
    "HF_HOME": str(_WORK / "hf"),
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_MEDTL_CACHE": str(_WORK / "cache"),
    "TRACKIO_DIR": str(_WORK / "trackio"),
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
for _name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ.pop(_name, None)

import pytest  # noqa: E402

pytest.register_assert_rewrite("tests.support")

from tests.support import draft_figures as draft_figures  # noqa: E402
from tests.support.commands import ROOT, configure_hub, options  # noqa: E402
from tests.support.process_pool import ProcessPool  # noqa: E402

# Fixtures that train, serve or start processes: the tests that use one are slow.
SLOW_FIXTURES = {
    "address",
    "arguments",
    "downloads",
    "explained",
    "finished_run",
    "hub",
    "lung_model",
    "make_multilabel_trainer",
    "make_trainer",
    "model_folders",
    "multilabel_run",
    "process_pool",
    "published",
    "quick",
    "recorded",
    "runs",
    "segformer_run",
    "segmented",
    "stock_pool",
    "studied",
    "three_runs",
    "tracked",
    "trained",
    "uninterrupted",
    "validated",
    "wheel",
}


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name tests of bytes by the argument: bytes may hold a date, and all processes must collect the same names."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests as slow by their fixtures, so that `make test-fast` leaves them out."""
    for item in items:
        if SLOW_FIXTURES & {*getattr(item, "fixturenames", ())}:
            item.add_marker("slow")


def pytest_collection_finish() -> None:
    """Leave the modules out of garbage collections, of which each run does several."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def hub() -> Iterator[str]:
    """Start a Hub on the loopback address and return its URL."""
    server = subprocess.Popen(
        [sys.executable, ROOT / "tests/support/localhub.py", "--root", _WORK / "hub", "--port", str(_PORT)]
    )
    for _ in range(1200):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/__log", timeout=1)
            break
        time.sleep(0.05)
    else:
        pytest.fail("the loopback Hub did not start")
    yield os.environ["HF_ENDPOINT"]
    server.terminate()
    server.wait()


def skip_without_fork() -> None:
    """Skip a test that needs forked processes, as on Windows."""
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")


@pytest.fixture(scope="session")
def process_pool() -> Iterator[ProcessPool]:
    """Return a pool that runs scripts in processes of their own, without the ten seconds of imports."""
    skip_without_fork()
    modules = ("hf_medtl.cli.app", "hf_medtl.runs.batch_predict", "hf_medtl.runs.train")
    pool = ProcessPool(*modules, "albumentations", "transformers.pipelines", "tests.support.draft_figures")
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def stock_pool() -> Iterator[ProcessPool]:
    """Return a pool that runs user code, in processes that have not imported hf_medtl."""
    skip_without_fork()
    pool = ProcessPool("transformers.pipelines", "torchvision", "pandas", "sklearn.metrics", isolated=True)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder with real images and weights."""
    folder = os.environ.get("HF_MEDTL_SHARED")
    if not folder:
        pytest.skip("HF_MEDTL_SHARED is not set: no real images and weights")
    return Path(folder)


@pytest.fixture(scope="session")
def real_brain(shared: Path) -> Path:
    return shared / "data" / "brain-mri-images-for-brain-tumor-detection"


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 48 synthetic brain slices of 24 patients."""
    from hf_medtl.data.phantoms import write_phantoms

    return write_phantoms(tmp_path_factory.mktemp("data") / "brain", "brain", patients=24, images=2, size=64)


@pytest.fixture(scope="session")
def chest_phantoms(tmp_path_factory) -> Path:
    """Return a folder of 36 chest phantoms of 18 patients with lung masks."""
    from hf_medtl.data.phantoms import write_phantoms

    return write_phantoms(tmp_path_factory.mktemp("data") / "chest", "chest", patients=18, images=2, size=64)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory):
    """Return a function that creates the tiny checkpoint of a model family once and returns its folder."""
    from tests.support.tiny_models import save_tiny

    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = save_tiny(family, tmp_path_factory.mktemp("backbones") / f"tiny-{family}")
        return made[family]

    return folder


@pytest.fixture
def make_trainer(phantoms, tiny_checkpoint, tmp_path):
    """Return a function that creates a trainer of a model family on phantoms."""
    from hf_medtl import Recipe
    from tests.support.resumed_training import build_trainer

    def make(family: str = "vit", **more: object):
        return build_trainer(Recipe(**options(phantoms, tiny_checkpoint(family), tmp_path / "run", **more)))

    return make


_SHARED_RUNS: dict[Path, dict[str, int]] = {}  # folder -> file -> time of its last change


def _file_times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def finished_run(phantoms: Path, tiny_checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run of the tiny ViT on phantoms, which tests only read."""
    from hf_medtl import Recipe, run

    card = ROOT / "model_cards" / "brain.md"
    output = tmp_path_factory.mktemp("runs") / "finished"
    folder = run(Recipe(**options(phantoms, tiny_checkpoint("vit"), output, model_card=str(card))))
    _SHARED_RUNS[folder] = _file_times(folder)
    return folder


@pytest.fixture(autouse=True)
def check_shared_runs() -> Iterator[None]:
    """Assert that a test has not changed the run that all tests share."""
    yield
    for folder, times in _SHARED_RUNS.items():
        _SHARED_RUNS[folder] = _file_times(folder)  # so that only the test at fault fails
        assert _SHARED_RUNS[folder] == times, f"{folder} is shared: change a copy, such as `publishable_run`"


@pytest.fixture
def publishable_run(finished_run: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished run without checksums, which a test may change."""
    return shutil.copytree(finished_run, tmp_path / "ready", ignore=shutil.ignore_patterns("checksums.json"))


@pytest.fixture
def fail_requests(hub: str, monkeypatch: pytest.MonkeyPatch):
    """Return a function that makes Hub requests with given paths fail; waits are recorded instead of slept."""
    from hf_medtl.common.hub_errors import with_retries

    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(with_retries, "__defaults__", (5, waits.append))

    def fail(*faults: dict) -> list[float]:
        configure_hub(hub, "__fail", list(faults))
        return waits

    yield fail
    fail()


@pytest.fixture
def set_hub_storage(hub: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Return a function that selects the storage of the Hub: "lfs", "multipart" or "xet"."""

    def serve(store: str) -> None:
        parts, cas = (30_000 if store == "multipart" else 0), (f"local://{tmp_path}/cas" if store == "xet" else "")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", store != "xet")
        configure_hub(hub, "__set", {"multipart": parts, "xet": cas})

    yield serve
    serve("lfs")


@pytest.fixture
def hub_changes(hub: str):
    """Return a function that lists the paths of all write requests to the Hub since the test started."""

    def changes() -> list[str]:
        log = json.load(urllib.request.urlopen(f"{hub}/__log"))
        return [path for method, path, *_ in log if method in ("POST", "PUT", "DELETE") and "validate" not in path]

    before = len(changes())
    return lambda: changes()[before:]


@pytest.fixture(scope="session")
def results(finished_run: Path) -> dict:
    return json.loads((finished_run / "results.json").read_text())
