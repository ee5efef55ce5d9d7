"""What a push does where the Hub, the network or the disk fails: try again, or one message and nothing half."""

import resource
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
def fresh(ready):
    """The run with weights of its own: the Hub has none of its bytes."""
    renew(ready)
    return ready


def renew(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).add_(torch.rand(()))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def name_of(request: pytest.FixtureRequest) -> str:
    return f"ci-user/failing-{zlib.crc32(request.node.name.encode())}"


def test_each_way_of_keeping_files(fresh, phantoms, serving, request):
    picture, names = next(phantoms.glob("lesion/*.png")), {}
    for store in STORES:
        serving(store)
        renew(fresh)
        names[store] = f"{name_of(request)}-{store}"
        push(fresh, names[store])
        here = Predictor.from_pretrained(fresh).predict(picture)[0].probabilities
        assert Predictor.from_pretrained(names[store]).predict(picture)[0].probabilities == here
    serving("lfs")
    assert Predictor.from_pretrained(names["xet"]).predict(picture)[0].probabilities == here  # over plain HTTP


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
        ("xet", {"path": "/xet-write-token/", "status": 500, "times": 1}, []),  # hf-xet waits by itself
        ("xet", {"path": "/commit/", "status": 500, "times": 1}, [1]),
    ],
)
def test_what_may_pass_is_tried_again(store, fault, waits, failing, serving, fresh, request):
    serving(store)
    found, name, api = failing(fault), name_of(request), HfApi()
    push(fresh, name)
    assert [wait for wait in found if wait in waits][: len(waits)] == waits
    assert [tag.name for tag in api.list_repo_refs(name).tags] == ["v1"]
    commits = [commit.commit_id for commit in api.list_repo_commits(name)]
    assert len(commits) == 2  # the Hub's own, and ours
    for commit in commits:
        files = api.list_repo_files(name, revision=commit)
        assert ("README.md" in files) == ("model.safetensors" in files)


@pytest.mark.parametrize(
    ("store", "fault", "words"),
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
@pytest.mark.parametrize("there", [False, True], ids=["new", "of-before"])
def test_what_will_not_pass_ends_in_one_message(there, store, fault, words, failing, serving, fresh, request):
    api, name = HfApi(), name_of(request)
    if there:
        push(fresh, name)
        renew(fresh)
    else:
        api.create_repo(name)
    before = [*api.list_repo_tree(name, recursive=True)], api.list_repo_refs(name), api.model_info(name).sha
    serving(store)
    failing(fault | {"times": 999})
    with pytest.raises(MedtlError, match=words) as error:
        push(fresh, name)
    assert f"The run is complete in {fresh}; then: hf-medtl push {fresh} {name}" in str(error.value)
    assert str(error.value).startswith(f"{name} could not be uploaded")
    assert "\n" not in str(error.value)
    failing()
    serving("lfs")
    assert before == ([*api.list_repo_tree(name, recursive=True)], api.list_repo_refs(name), api.model_info(name).sha)


def test_an_upload_that_takes_long_is_one_commit(serving, fresh, request, monkeypatch):
    """TRAP: with hf-xet, upload_folder of huggingface_hub 2 makes several from 5 minutes on."""
    pytest.importorskip("huggingface_hub._upload_pipeline")
    monkeypatch.setattr("huggingface_hub._upload_pipeline.MAX_COMMIT_INTERVAL", 0)
    serving("xet")
    push(fresh, name_of(request))
    assert len(HfApi().list_repo_commits(name_of(request))) == 2  # the Hub's own, and ours


def test_what_could_not_be_tagged_is_tagged_by_the_next_push(failing, fresh):
    api, name = HfApi(), "ci-user/untagged"
    failing({"path": "/tag/", "status": 500, "times": 99})
    with pytest.raises(MedtlError, match="is uploaded, but could not be tagged"):
        push(fresh, name)
    failing()
    assert not api.list_repo_refs(name).tags
    push(fresh, name)
    push(fresh, name)
    (tag,) = api.list_repo_refs(name).tags
    assert (tag.name, tag.target_commit) == ("v1", api.model_info(name).sha)
    assert len(api.list_repo_commits(name)) == 2


def test_addresses_are_told_without_their_signature(failing, fresh, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("Error while uploading") from OSError("403 for 'https://storage/x?X-Amz-Signature=abc123'")

    monkeypatch.setattr(HfApi, "create_commit", refuse)
    with pytest.raises(MedtlError, match="https://storage/x") as error:
        push(fresh, "ci-user/signed")
    assert "abc123" not in str(error.value)


@pytest.mark.parametrize("store", ["lfs", "xet"])
def test_a_full_disk_at_download(store, serving, fresh, phantoms, request, monkeypatch):
    """A limit on the size of files ends in the same write that fails as on a full disk."""
    name, picture = name_of(request), next(phantoms.glob("lesion/*.png"))
    serving(store)
    push(fresh, name)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # bytes; the weights have more
    try:
        with pytest.raises(MedtlError, match=r"no room for .* Free some, or set HF_HOME"):
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
    here = Predictor.from_pretrained(fresh).predict(picture)[0].probabilities
    assert Predictor.from_pretrained(name).predict(picture)[0].probabilities == here
    shutil.rmtree(cache)
