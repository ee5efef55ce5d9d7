"""The folder of a Space: metadata, push to the Hub, and a self-contained start."""

import contextlib
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import tomllib
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gradio_client import Client, handle_file
from huggingface_hub import HfApi, SpaceCard, hf_hub_download
from packaging.requirements import Requirement
from packaging.version import Version
from PIL import Image

from hf_medtl import MedtlError
from hf_medtl.cli.space import repeat_models_option
from hf_medtl.common.licences import HUB_NAMES
from hf_medtl.data.person_names import names_in_headers
from hf_medtl.publish.hub import push
from hf_medtl.space.examples import generate_examples
from hf_medtl.space.publish import GRADIO_VERSION, PACKAGE, bundle_wheel, push_space, write_space
from hf_medtl.space.registry import ModelRegistry
from tests.support.commands import COMMAND, ROOT, run_cli, run_command
from tests.support.killed import leave_killed
from tests.support.process_pool import free_port
from tests.support.tiny_models import build_tiny, save_tiny

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
TOKEN = "hf_" + "a1B2" * 9
FILES = {"README.md", "app.py", "requirements.txt", "examples/brain.png", "examples/brain_12_bits.dcm",
         "examples/brain_lesion.png", "examples/chest.png", "examples/chest_opacity.png"}  # fmt: skip


@pytest.fixture(scope="module")
def published(hub, finished_run, tmp_path_factory):
    """Return the id of a model on the Hub."""
    push(shutil.copytree(finished_run, tmp_path_factory.mktemp("published") / "run"), "ci-user/for-a-space")
    return "ci-user/for-a-space"


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def count_commits(name: str) -> int:
    """Return the number of commits of a Space after the initial one."""
    return len(HfApi().list_repo_commits(name, repo_type="space")) - 1


def list_space_files(name: str) -> set[str]:
    return set(HfApi().list_repo_files(name, repo_type="space")) - {".gitattributes"}


# Metadata


def test_repository_folder_equals_written_space(tmp_path):
    assert set(write_space(tmp_path / "space")) == FILES
    assert read_files(tmp_path / "space") == read_files(ROOT / "spaces")


def test_metadata_follow_hub_rules(hub):
    card = SpaceCard.load(ROOT / "spaces" / "README.md")
    card.validate()
    data = card.data
    assert data.sdk == "gradio"
    assert str(data.sdk_version) == GRADIO_VERSION == PINS["gradio"]
    extra = map(Requirement, PROJECT["optional-dependencies"]["space"])
    gradio = next(requirement for requirement in extra if requirement.name == "gradio")
    assert str(gradio.specifier) == "<7,>=6.25"
    assert Version(str(data.sdk_version)) in gradio.specifier
    assert isinstance(data.python_version, str)  # TRAP: unquoted, YAML reads 3.10 as 3.1
    assert Version(data.python_version) >= Version("3.11")
    assert Version(data.python_version) in Requirement(f"python{PROJECT['requires-python']}").specifier
    assert data.license in HUB_NAMES
    assert len(data.to_dict()["short_description"]) <= 60
    assert {data.to_dict()["colorFrom"], data.to_dict()["colorTo"]} <= COLOURS
    assert (ROOT / "spaces" / data.app_file).is_file()
    assert not data.models


def test_requirement_names_this_package_and_extras():
    line = Requirement((ROOT / "spaces" / "requirements.txt").read_text().strip())
    assert (line.name, line.extras) == (PROJECT["name"], {"dicom-out", "explain", "nifti", "space"})
    assert line.extras <= PROJECT["optional-dependencies"].keys()
    for extra in line.extras:
        assert all(Requirement(requirement).name in PINS for requirement in PROJECT["optional-dependencies"][extra])


# Push to the Hub


@pytest.mark.slow
def test_runs_are_copied_and_hub_models_are_named(publishable_run, published, tmp_path):
    name = "ci-user/page"
    shutil.copytree(publishable_run, tmp_path / "kept" / "vit")
    (publishable_run / "export").mkdir()
    (publishable_run / "export" / "model.onnx").write_bytes(b"weights again")
    printed = run_cli("space", "push", name, "--models", publishable_run, published, "--title", 'A "page" of: ours')
    assert f"Pushed to {os.environ['HF_ENDPOINT']}/spaces/{name}" in printed
    assert "model.safetensors" in printed
    assert count_commits(name) == 1
    copied = {file.removeprefix("models/ready/") for file in list_space_files(name) - FILES}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "results.json", "README.md",
            "outliers.safetensors"} <= copied  # fmt: skip
    assert not [file for file in copied if file.endswith(".csv") or file.startswith(("export/", "figures/", "models/"))]

    card = SpaceCard.load(name)
    assert card.data.models == [published]
    assert card.data.title == 'A "page" of: ours'
    folder = Path(HfApi().snapshot_download(name, repo_type="space", local_dir=tmp_path / "copy"))
    models = runpy.run_path(str(folder / "app.py"))["MODELS"]
    assert models == [str(folder / "models" / "ready"), published]
    assert [model.name for model in ModelRegistry(models)] == ["ready", "for-a-space"]

    run_cli("space", "push", name, "--models", publishable_run, published, "--title", 'A "page" of: ours')
    assert count_commits(name) == 1  # unchanged files give no commit

    HfApi().upload_file(repo_id=name, repo_type="space", path_or_fileobj=b"All rights.", path_in_repo="LICENSE")
    run_cli("space", "push", name, "--models", published)
    assert list_space_files(name) == FILES | {"LICENSE"}
    assert count_commits(name) == 3


def test_dry_run_sends_nothing_and_out_keeps_files(published, hub_changes, tmp_path):
    out = leave_killed(tmp_path / "out")
    printed = run_cli("space", "push", "ci-user/dry", "--models", published, "--dry_run", "--out", out)
    assert "Nothing was sent" in printed
    assert set(read_files(out)) == FILES
    assert not hub_changes()
    with pytest.raises(MedtlError, match="is not empty"):
        run_cli("space", "push", "ci-user/dry", "--out", out)


def test_private_space(hub):
    run_cli("space", "push", "ci-user/hidden", "--private")
    assert HfApi().space_info("ci-user/hidden").private
    run_cli("space", "push", "ci-user/shown")
    assert not HfApi().space_info("ci-user/shown").private


def test_invalid_input_writes_nothing(publishable_run, tmp_path, hub_changes):
    def expect_error(words: str, *arguments: object) -> None:
        with pytest.raises(MedtlError, match=words):
            run_cli("space", "push", "ci-user/refused", *arguments)
        assert not hub_changes()

    expect_error("ci-user/nowhere is neither a folder nor a model", "--models", "ci-user/nowhere")
    expect_error("The folder /nowhere does not exist", "--models", "/nowhere")
    expect_error("given twice", "--models", publishable_run, publishable_run)
    expect_error("requirements.txt holds an access token", "--requirement", f"hf_medtl @ https://{TOKEN}@host/x.zip")
    (publishable_run / "recipe.yaml").write_text(f"note: {TOKEN}\n")
    expect_error("recipe.yaml holds an access token", "--models", publishable_run)
    (publishable_run / "recipe.yaml").write_text("seed: 1\n")
    card = (publishable_run / "README.md").read_text()
    (publishable_run / "README.md").write_text(card.replace("## Limits", "## Bounds"))
    expect_error("does not give limits", "--models", publishable_run)
    run_cli("space", "push", "ci-user/waived", "--models", publishable_run, "--waive", "limits=they are in the paper")
    path = hf_hub_download("ci-user/waived", "models/ready/README.md", repo_type="space")
    assert "- limits is not given: they are in the paper" in Path(path).read_text()
    assert "is not given" not in (publishable_run / "README.md").read_text()
    before = hub_changes()
    (publishable_run / "model.safetensors").write_bytes((publishable_run / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(MedtlError, match=r"model.safetensors is damaged: its header gives"):
        run_cli("space", "push", "ci-user/refused", "--models", publishable_run)
    assert hub_changes() == before
    assert not HfApi().repo_exists("ci-user/refused", repo_type="space")


def test_metadata_refused_by_hub_creates_no_space(fail_requests, hub_changes):
    fail_requests({"path": "/validate-yaml", "status": 400, "times": 99})
    with pytest.raises(MedtlError, match="The Hub refuses the metadata"):
        run_cli("space", "push", "ci-user/unheard")
    assert not hub_changes()


@pytest.mark.slow
def test_bundled_wheel_can_be_downloaded(hub, wheel, tmp_path):
    name = "ci-user/with-wheel"
    run_cli("space", "push", name, "--requirement", wheel)
    assert wheel.name in list_space_files(name)
    lines = hf_hub_download(name, "requirements.txt", repo_type="space")
    assert Path(lines).read_text().startswith(f"{PACKAGE} @ {hub}/spaces/{name}/resolve/main/{wheel.name}#sha256=")
    command = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "-r", lines)
    done = run_command(*command, "--dest", tmp_path / "got", "--disable-pip-version-check")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "got" / wheel.name).read_bytes() == wheel.read_bytes()
    with pytest.raises(MedtlError, match="private Space"):
        run_cli("space", "push", "ci-user/shut", "--requirement", wheel, "--private")
    other_wheel = tmp_path / wheel.name
    other_wheel.write_bytes(b"another")
    (tmp_path / "copy").mkdir()
    assert (
        bundle_wheel(other_wheel, tmp_path / "copy", name) not in Path(lines).read_text()
    )  # another file gives another hash, so that pip installs it again


def test_example_with_a_name_in_its_header_is_not_pushed(tmp_path):
    (tmp_path / "examples").mkdir()
    for example in generate_examples():  # those of ours name nobody
        (tmp_path / "examples" / example.name).write_bytes(example.content)
    assert names_in_headers([*(tmp_path / "examples").iterdir()]) == {}
    exif = Image.Exif()
    exif[0x013B] = "Hans Meier"  # Artist
    Image.new("L", (8, 8)).save(tmp_path / "examples" / "own.jpg", exif=exif)
    with pytest.raises(MedtlError, match=r"examples/own.jpg holds a word that is also in EXIF.*Nothing was uploaded"):
        push_space(tmp_path, "ci-user/own-example")


def test_refused_push_raises_without_token(hub, tmp_path, monkeypatch):
    write_space(tmp_path / "space")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(MedtlError, match=r"The Space ci-user/denied could .*: log in with `hf auth login`") as error:
        push_space(tmp_path / "space", "ci-user/denied")
    assert "hf_wrong" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cnn", "smp"])
def test_hub_model_code_is_not_run(kind, hub, tmp_path):
    """Model classes come from hf_medtl, not from the code in the repository."""
    if kind == "cnn":
        save_tiny("cnn", tmp_path)
    else:
        for part in build_tiny():
            part.save_pretrained(tmp_path)
    assert f"{kind}." in json.dumps(json.loads((tmp_path / "config.json").read_text())["auto_map"])
    (tmp_path / f"{kind}.py").write_text("raise SystemExit('code of the repository was run')\n")
    name = f"ci-user/code-{kind}"
    HfApi().create_repo(name)
    HfApi().upload_folder(repo_id=name, folder_path=tmp_path)
    model = next(iter(ModelRegistry([name])))
    assert type(model.predictor.model).__module__ == f"hf_medtl.models.{kind}"
    assert model.is_segmenter == (kind == "smp")


# The command


def test_models_option_accepts_several_values():
    twice = ["--models", "a", "--models", "b"]
    assert repeat_models_option(["--models", "a", "b", "--port", "1"]) == [*twice, "--port", "1"]
    assert repeat_models_option(["push", "o/n", "--models", "a", "b"]) == ["push", "o/n", *twice]
    assert repeat_models_option(twice) == twice
    assert repeat_models_option(["--port", "1", "push"]) == ["--port", "1", "push"]


def test_help_lists_options():
    printed = " ".join(run_cli("space", "--help").split())
    assert all(word in printed for word in ("MODEL ...", "--port", "--host", "push", "Serve a web page"))
    printed = " ".join(run_cli("space", "push", "--help").split())
    assert all(
        word in printed for word in ("OWNER/NAME", "MODEL ...", "--private", "--dry_run", "--out", "--requirement")
    )


def test_port_and_model_errors_before_loading(hub, monkeypatch):
    with monkeypatch.context() as patch, socket.socket() as taken:
        patch.setattr("hf_medtl.space.serve.create_app", lambda *_, **__: pytest.fail("models were loaded"))
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(MedtlError, match=r"Address already in use.*Give another port"):
            run_cli("space", "--port", taken.getsockname()[1])
        patch.setenv("GRADIO_SERVER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(SystemExit, match=r"Error: Cannot listen on 127.0.0.1:\d+"):
            runpy.run_path(str(ROOT / "spaces" / "app.py"), run_name="__main__")
    with pytest.raises(MedtlError, match=r"nowhere can't be loaded .* check the spelling"):
        run_cli("space", "--models", "ci-user/nowhere", "--port", free_port())


# The page, started as users do


@contextlib.contextmanager
def run_page(command: list[object], port: int, cwd: Path, end: signal.Signals, **env: str) -> Iterator[str]:
    """Serve a page in a separate process; assert that it stops cleanly while a client is connected."""
    temporary = cwd.with_name(f"{cwd.name}-tmp")
    temporary.mkdir()
    log = cwd.with_name(f"{cwd.name}.log")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with log.open("w") as stream:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=cwd,
            env=clean | {"TMPDIR": str(temporary)} | env,
            stdout=stream,
            stderr=stream,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(6000):
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url, timeout=9).close()
                break
            time.sleep(0.1)
        yield url
        process.send_signal(end)
        assert process.wait(60) == 0
        assert not re.search("Traceback|ERROR|Abort", log.read_text()), log.read_text()
        assert not list(temporary.glob("hf_medtl-space-*"))
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_command_serves_several_models(finished_run, published, tmp_path):
    port, cwd = free_port(), tmp_path / "cwd"
    cwd.mkdir()
    command = [COMMAND, "space", "--models", finished_run, published, "--port", port]
    with run_page(command, port, cwd, signal.SIGINT, PYTHONPATH=str(ROOT)) as url:
        client = Client(url, verbose=False)
        image = handle_file(str(ROOT / "spaces" / "examples" / "brain.png"))
        answers = [client.predict(image, name, api_name="/classify") for name in ("finished", "for-a-space")]
        assert answers[0]["probabilities"] == answers[1]["probabilities"]
    assert not read_files(cwd)
    assert f"Open http://127.0.0.1:{port} in a browser" in (tmp_path / "cwd.log").read_text()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """Return the wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (folder / "source").mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / "source")
    shutil.copytree(ROOT / "model_cards", folder / "source" / "model_cards")
    shutil.copytree(ROOT / "hf_medtl", folder / "source" / "hf_medtl", ignore=shutil.ignore_patterns("__pycache__"))
    command = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--disable-pip-version-check")
    done = run_command(*command, "--no-build-isolation", "--wheel-dir", folder / "wheels", folder / "source")
    assert done.returncode == 0, done.stderr
    return next((folder / "wheels").glob("hf_medtl-*.whl"))


def test_wheel_has_all_data_files(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [path for path in (ROOT / "hf_medtl").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    wanted = {path.relative_to(ROOT).as_posix() for path in files}
    wanted |= {f"hf_medtl/model_cards/{path.name}" for path in (ROOT / "model_cards").glob("*.md")}
    assert {"hf_medtl/space/space.css", "hf_medtl/space/viewer.js", "hf_medtl/space/app.py.jinja"} <= wanted
    assert wanted <= names


@pytest.fixture
def environment(request, wheel, tmp_path) -> Iterator[Path]:
    """Return the Python of a new environment with the requirements of spaces/.

    hf_medtl comes from the wheel. Other packages come from the test environment or, with HF_MEDTL_INSTALL, are
    installed as on the Hub, which takes minutes and gigabytes.
    """
    if request.param == "whole" and "HF_MEDTL_INSTALL" not in os.environ:
        pytest.skip("HF_MEDTL_INSTALL is not set: torch and the other packages are not installed again")
    folder, complete = tmp_path / "environment", request.param == "whole"
    venv.create(folder, symlinks=True, with_pip=complete)
    python = folder / "bin" / "python"
    install = (
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--disable-pip-version-check",
        "--no-cache-dir",
    )
    listed = ("--find-links", wheel.parent, "-r", ROOT / "spaces" / "requirements.txt")
    if complete:
        commands = [(*install, "--constraint", ROOT / "constraints.txt", *listed)]
    else:
        site_packages = next(folder.glob("lib/python*/site-packages"))
        # Plain paths: .pth files in these folders are not read, since they could add the checkout.
        (site_packages / "others.pth").write_text(
            "\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
        )
        # The wheel first: pip would take hf_medtl of the test environment for installed.
        commands = [(*install, "--no-deps", "--ignore-installed", wheel), (*install, "--no-index", *listed)]
    for command in commands:
        done = run_command(*command, timeout=3000, PYTHONPATH="")
        assert done.returncode == 0, done.stderr
    yield python
    shutil.rmtree(folder)  # possibly gigabytes


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["quick", "whole"], indirect=True)
def test_whole_folder_is_self_contained(environment, publishable_run, published, tmp_path):
    folder, cwd, port = tmp_path / "space", tmp_path / "cwd", free_port()
    cwd.mkdir()
    write_space(folder, [str(publishable_run), published])
    before = read_files(folder)
    assert before["requirements.txt"] == (ROOT / "spaces" / "requirements.txt").read_bytes()
    done = run_command(environment, "-I", "-c", "import hf_medtl; print(hf_medtl.__file__)")
    assert Path(done.stdout.strip()).is_relative_to(environment.parents[1]), done
    command = [environment, "-I", folder / "app.py"]
    with run_page(command, port, cwd, signal.SIGTERM, GRADIO_SERVER_PORT=str(port)) as url:
        code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        assert code
        (tmp_path / "client").mkdir()
        (tmp_path / "client" / "examples").symlink_to(folder / "examples")
        example = code[1].replace("http://127.0.0.1:7860", url)
        finished = subprocess.run(
            [sys.executable, "-c", example], cwd=tmp_path / "client", capture_output=True, text=True
        )
        assert finished.returncode == 0, finished.stderr
        assert "lesion" in finished.stdout
        assert Image.open(tmp_path / "client" / "map.png").format == "PNG"
        client = Client(url, verbose=False)
        for file in (*sorted((folder / "examples").iterdir()), volume(tmp_path)):
            answer = client.predict(handle_file(str(file)), "for-a-space", api_name="/classify")
            assert answer["probabilities"].keys() == {"lesion", "no_lesion"}
    assert not read_files(cwd)
    assert read_files(folder) == before


def volume(folder: Path) -> Path:
    """Write a NIfTI file, which needs an optional dependency."""
    nibabel = pytest.importorskip("nibabel")
    values = torch.rand(32, 32, 3, generator=torch.Generator().manual_seed(0)).numpy()
    nibabel.save(nibabel.Nifti1Image(values, None), folder / "volume.nii.gz")
    return folder / "volume.nii.gz"


def test_app_files_of_earlier_spaces_find_main():
    """Earlier app files import `main` from `hf_medtl.space.site`."""
    from hf_medtl.space import serve, site

    assert site.main is serve.main
