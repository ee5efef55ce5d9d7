"""Every write of the package goes through `hf_medtl.common.files`."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hf_medtl"
# Functions that may write otherwise -> why a killed process does no harm there.
EXEMPT = {
    "data/cache.py:_build": "a name of its own, held by a lock, synced and renamed",
    "data/dicom_writer.py:write_dicom": "to a stream, or to the partial path of `save_dicom_outputs`",
    "data/download.py:write": "to the unfinished folder of `_create_once`, renamed when it is complete",
    "data/download.py:_save_image": "the same folder",
    "data/fingerprints.py:compute_fingerprints": "to the partial path of `_keep`",
    "data/fingerprints.py:_link_aligned": "to the partial path of `_keep`",
    "models/processor.py:copy": "to the folder of `save_pretrained`, a staging one; the module travels with models",
    "models/processor.py:save_pretrained": "the method itself",
    "publish/checkpoints.py:_submit": "to the staging folder of an upload",
    "publish/checkpoints.py:_link_or_copy": "to the staging folder of an upload",
    "runs/batch_predict.py:predict_files": "appends lines, synced; `_truncate` removes an unfinished last one",
    "runs/importing.py:_write": "to the staging folder of `filling`",
    "runs/train.py:_detect_ood": "the method of our own class, which is checked itself",
    "runs/study.py:_redirect_output": "appends to a log",
    "space/app.py:analyze": "a session is touched, no file",
    "space/demo.py:_train": "to a folder that is renamed when it is complete",
    "space/security/upload_store.py:store_upload": "an upload, deleted when it was read",
    "training/trainer.py:_save": "a checkpoint counts when its trainer_state.json, written last, is there",
    "export/onnx.py:_export": "to the temporary folder of `export_run`",
}
TARGET_IS_OWNER = {"write_text", "write_bytes", "touch"}
TARGET_IS_FIRST = {
    *("save", "save_as", "save_pretrained", "savefig", "savetxt", "savez", "imwrite"),
    *("to_csv", "to_excel", "to_filename", "to_json", "to_parquet", "to_pickle", "tofile"),
}
CLASSES = {"FileHandler", "ParquetWriter", "RotatingFileHandler"}
TARGET_IS_SECOND = {"save_file", "save_model", "dump", "copy", "copy2", "copyfile", "copyfileobj", "copytree", "move"}
WRITING = {mode + more for mode in "wax" for more in ("", "b", "t", "+", "b+", "+b")} | {"r+", "r+b", "rb+"}
TARGET_BY_NAME = {"path_or_buf", "path", "fname", "file", "filename", "dst", "f", "fp"}
OURS = {"replacing", "adding_files", "replacing_folder", "scratch_folder", "TemporaryDirectory", "BytesIO"}


def root(node: ast.expr) -> str:
    """The name that a path is made from: `a` of `(a / "b").with_suffix(".c")`."""
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.BinOp):
            node = node.left
        elif isinstance(node, ast.Attribute | ast.Subscript | ast.Starred):
            node = node.value
        elif isinstance(node, ast.Call):
            # Path(a) is made from a, a.with_suffix(...) from a.
            is_path = isinstance(node.func, ast.Name) and node.func.id in ("Path", "str") and node.args
            node = node.args[0] if is_path else node.func
        else:
            return ""
    return node.id


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else root(node.func)


def target(node: ast.Call) -> ast.expr | None:
    """What a call writes to, or None if it writes nothing."""
    name, owner = called(node), node.func.value if isinstance(node.func, ast.Attribute) else None
    modes = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
    written = {str(mode.value) for mode in modes if isinstance(mode, ast.Constant)} & WRITING
    if name in ("open", "ZipFile", "TarFile", "fdopen") and written:
        return owner if owner is not None and name == "open" and root(owner) != "os" else node.args[0]
    if owner is not None and name in TARGET_IS_OWNER:
        return owner
    given = [keyword.value for keyword in node.keywords if keyword.arg in TARGET_BY_NAME]
    modules = ("shutil", "json", "yaml", "torch", "pickle", "joblib")
    second = name in TARGET_IS_SECOND or (name == "save" and owner is not None and root(owner) == "torch")
    if second and (owner is None or root(owner) in modules):
        return (node.args[1:] or given or [None])[0]
    if name in CLASSES or (
        owner is not None and (name in TARGET_IS_FIRST or (name, root(owner)) == ("export", "torch"))
    ):
        return (node.args or given or [None])[0]
    return None


def safe_names(function: ast.AST) -> set[str]:
    """Names in a function that stand for partial paths, staging folders and buffers, or are made from them."""
    safe: set[str] = set()
    for node in ast.walk(function):
        pairs = []
        if isinstance(node, ast.With):
            pairs = [(item.context_expr, item.optional_vars) for item in node.items]
        elif isinstance(node, ast.Assign):
            pairs = [(node.value, name) for name in node.targets]
        for value, name in pairs:
            names = [part.id for part in ast.walk(name) if isinstance(part, ast.Name)] if name else []
            values = value.elts if isinstance(value, ast.Tuple) else [value] * len(names)
            for one, part in zip(names, values, strict=False):
                if (isinstance(part, ast.Call) and called(part) in OURS) or root(part) in safe:
                    safe.add(one)
    return safe


def unsafe_writes(source: str) -> list[tuple[str, int]]:
    """Function and line of each write that could leave half a file."""
    found = []

    def visit(node: ast.AST, function: str, safe: set[str]) -> None:
        for child in ast.iter_child_nodes(node):
            inner, names = function, safe
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                inner, names = child.name, safe | safe_names(child)
            if isinstance(child, ast.Call):
                written = target(child)
                if written is not None and not isinstance(written, ast.Constant) and root(written) not in safe:
                    found.append((inner, child.lineno))
            visit(child, inner, names)

    visit(ast.parse(source), "", set())
    return found


def test_every_write_is_atomic():
    found, used = [], set()
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        for function, line in unsafe_writes(path.read_text(encoding="utf-8")):
            exemption = name if name in EXEMPT else f"{name}:{function}"
            used.add(exemption)
            if exemption not in EXEMPT:
                found.append(f"{name}:{line} in {function}: use hf_medtl.common.files")
    assert not found, "\n".join(found)
    assert used == {*EXEMPT}, f"no longer needed: {sorted({*EXEMPT} - used)}"


@pytest.mark.parametrize(
    "line",
    [
        "p.write_text('x')",
        "(p / 'a').with_suffix('.b').write_bytes(b'')",
        "open(p, 'w')",
        "p.open('ab')",
        "p.open(mode='x')",
        "p.open('r+b')",
        "figure.savefig(p, dpi=3)",
        "figure.savefig(fname=p)",
        "table.to_csv(p, index=False)",
        "table.to_csv(path_or_buf=p)",
        "np.save(p, array)",
        "Image.fromarray(a).save(p)",
        "save_file(tensors, p)",
        "torch.save(state, p)",
        "json.dump(x, p)",
        "model.save_pretrained(p)",
        "shutil.copyfile(a, p)",
        "shutil.move(a, p)",
    ],
)
def test_a_write_is_found(line):
    assert unsafe_writes(f"def f(p):\n    {line}") == [("f", 2)]
    assert not unsafe_writes(f"def f(q):\n    with replacing(q) as p:\n        {line}")
    assert not unsafe_writes(
        f"def f(q):\n    with adding_files(q) as folder:\n        p = folder / 'x'\n        {line}"
    )


@pytest.mark.parametrize(
    "line", ["open(p)", "p.open('rb')", "open(p, encoding='utf-8')", "t.to_csv(index=False)", "copy.copy(p)"]
)
def test_reading_is_no_write(line):
    assert not unsafe_writes(f"def f(p):\n    {line}")
