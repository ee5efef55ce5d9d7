"""Failures of the Hub, the network or the disk during a push: retries, or one error and no partial upload."""

import shutil
import zlib
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants
from safetensors.torch import load_file, save_file

from hf_medtl import MedtlError, Predictor
from hf_medtl.publish.hub import push

STORES = ("lfs", "multipart", "xet")


@pytest.fixture
def new_run(publishable_run):
    """Return a run with new weights, of which the Hub has no bytes yet."""
    change_weights(publishable_run)
    return publishable_run


def change_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).add_(torch.rand(()))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def repo_name(request: pytest.FixtureRequest) -> str:
    return f"ci-user/failing-{zlib.crc32(request.node.name.encode())}"


@pytest.mark.slow
def test_each_storage_backend_returns_the_same_weights(new_run, phantoms, set_hub_storage, request):
    image, names = next(phantoms.glob("lesion/*.png")), {}
    for store in STORES:
        set_hub_storage(store)
        change_weights(new_run)
        names[store] = f"{repo_name(request)}-{store}"
        push(new_run, names[store])
        expected = Predictor.from_pretrained(new_run).predict(image)[0].probabilities
        assert Predictor.from_pretrained(names[store]).predict(image)[0].probabilities == expected
    set_hub_storage("lfs")
    assert Predictor.from_pretrained(names["xet"]).predict(image)[0].probabilities == expected  # over plain HTTP


@pytest.mark.slow
@pytest.mark.parametrize(
    ("store", "fault", "waits"),
    [
        ("lfs", {"path": "/commit/", "status": 500, "times": 2}, [1, 2]),
        ("lfs", {"path": "/commit/", "status": 429, "times": 1, "headers": {"Retry-After": "7"}}, [7]),
        ("lfs", {"path": "/commit/", "status": 0, "times": 1}, [1]),
        ("lfs", {"path": "/commit/", "status": 412, "times": 1}, [1]),
        ("lfs", {"path": "/repos/create", "status": 503, "times": 1}, [1]),
        ("lfs", {"path": "/preupload/", "status": 500, "times": 1}, [1]),
        ("lfs", {"path": "/objects/batch", "status": 429, "times": 1, "headers": {"Retry-After": "7"}}, [8]),
        ("lfs", {"path": "/__lfs/", "status": 0, "times": 2}, [1, 2]),
        ("lfs", {"path": "/tag/", "status": 500, "times": 1}, [1]),
        ("multipart", {"path": "/__lfs-part/", "status": 0, "times": 2}, [1, 2]),
        ("multipart", {"path": "/__lfs-complete/", "status": 500, "times": 1}, [1]),
        ("xet", {"path": "/xet-write-token/", "status": 500, "times": 1}, []),  # hf-xet does its own waiting
        ("xet", {"path": "/commit/", "status": 500, "times": 1}, [1]),
    ],
)
def test_retries_temporary_failures(store, fault, waits, fail_requests, set_hub_storage, new_run, request):
    set_hub_storage(store)
    slept, name, api = fail_requests(fault), repo_name(request), HfApi()
    push(new_run, name)
    assert [wait for wait in slept if wait in waits][: len(waits)] == waits
    assert [tag.name for tag in api.list_repo_refs(name).tags] == ["v1"]
    commits = [commit.commit_id for commit in api.list_repo_commits(name)]
    assert len(commits) == 2  # the Hub's own, and ours
    for commit in commits:
        files = api.list_repo_files(name, revision=commit)
        assert ("README.md" in files) == ("model.safetensors" in files)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("store", "fault", "message"),
    [
        ("lfs", {"path": "/commit/", "status": 401}, "does not know the token"),
        ("lfs", {"path": "/commit/", "status": 403}, "no write access here"),
        ("lfs", {"path": "/commit/", "status": 412}, "repository changed during the upload"),
        ("lfs", {"path": "/commit/", "status": 500}, "500 Internal Server Error"),
        ("lfs", {"path": "/commit/", "status": 0}, "(RemoteProtocol|Read|Write)Error: "),
        ("lfs", {"path": "/__lfs/", "status": 0}, "Error while uploading .model.safetensors"),
        ("lfs", {"path": "/__lfs/", "status": 403}, "no write access here"),
        ("multipart", {"path": "/__lfs-part/", "status": 0}, "Error while uploading .model.safetensors"),
        ("xet", {"path": "/xet-write-token/", "status": 401}, "does not know the token"),
        ("xet", {"path": "/xet-write-token/", "status": 403}, "no write access here"),
        ("xet", {"path": "/commit/", "status": 500}, "500 Internal Server Error"),
    ],
)
@pytest.mark.parametrize("exists", [False, True], ids=["new", "of-before"])
def test_permanent_failures_raise_and_change_nothing(
    exists, store, fault, message, fail_requests, set_hub_storage, new_run, request
):
    api, name = HfApi(), repo_name(request)
    if exists:
        push(new_run, name)
        change_weights(new_run)
    else:
        api.create_repo(name)
    before = [*api.list_repo_tree(name, recursive=True)], api.list_repo_refs(name), api.model_info(name).sha
    set_hub_storage(store)
    fail_requests(fault | {"times": 999})
    with pytest.raises(MedtlError, match=message) as error:
        push(new_run, name)
    assert f"The run is complete in {new_run}; then: hf-medtl push {new_run} {name}" in str(error.value)
    assert str(error.value).startswith(f"{name} could not be uploaded")
    assert "\n" not in str(error.value)
    fail_requests()
    set_hub_storage("lfs")
    assert before == ([*api.list_repo_tree(name, recursive=True)], api.list_repo_refs(name), api.model_info(name).sha)


def test_long_upload_is_one_commit(set_hub_storage, new_run, request, monkeypatch):
    """TRAP: with hf-xet, upload_folder of huggingface_hub 2 makes more than one commit after 5 minutes."""
    pytest.importorskip("huggingface_hub._upload_pipeline")
    monkeypatch.setattr("huggingface_hub._upload_pipeline.MAX_COMMIT_INTERVAL", 0)
    set_hub_storage("xet")
    push(new_run, repo_name(request))
    assert len(HfApi().list_repo_commits(repo_name(request))) == 2  # the Hub's own, and ours


def test_next_push_sets_a_missing_tag(fail_requests, new_run):
    api, name = HfApi(), "ci-user/untagged"
    fail_requests({"path": "/tag/", "status": 500, "times": 99})
    with pytest.raises(MedtlError, match="is uploaded, but could not be tagged"):
        push(new_run, name)
    fail_requests()
    assert not api.list_repo_refs(name).tags
    push(new_run, name)
    push(new_run, name)
    (tag,) = api.list_repo_refs(name).tags
    assert (tag.name, tag.target_commit) == ("v1", api.model_info(name).sha)
    assert len(api.list_repo_commits(name)) == 2


def test_errors_hide_url_signatures(fail_requests, new_run, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("Error while uploading") from OSError("403 for 'https://storage/x?X-Amz-Signature=abc123'")

    monkeypatch.setattr(HfApi, "create_commit", refuse)
    with pytest.raises(MedtlError, match="https://storage/x") as error:
        push(new_run, "ci-user/signed")
    assert "abc123" not in str(error.value)


@pytest.mark.parametrize("store", ["lfs", "xet"])
def test_full_disk_during_download_raises_and_leaves_no_partial_files(
    store, set_hub_storage, new_run, phantoms, request, monkeypatch
):
    """A limit on the file size makes the same write fail as a full disk does."""
    name, image = repo_name(request), next(phantoms.glob("lesion/*.png"))
    set_hub_storage(store)
    push(new_run, name)
    resource = pytest.importorskip("resource", reason="the size of files can't be limited here")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # bytes, fewer than the weights have
    try:
        with pytest.raises(MedtlError, match=r"The disk is full: .* Free some space, or set HF_HOME"):
            Predictor.from_pretrained(name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    cache = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    assert not [*cache.rglob("*.incomplete"), *cache.rglob("model.safetensors")]
    assert max(path.stat().st_size for path in (cache / "blobs").iterdir()) < 50_000
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(MedtlError, match="can't be loaded"):
            Predictor.from_pretrained(name)
    expected = Predictor.from_pretrained(new_run).predict(image)[0].probabilities
    assert Predictor.from_pretrained(name).predict(image)[0].probabilities == expected
    shutil.rmtree(cache)
