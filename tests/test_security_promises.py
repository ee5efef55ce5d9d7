"""SECURITY.md names a test for each promise, and tests that exist."""

import ast
import re

from tests.support.commands import ROOT

TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
PROMISES = re.findall(r"^\| (.+) \| (.*) \|$", TEXT.partition("## Promises")[2], re.MULTILINE)[1:]


def test_every_promise_has_a_test_that_exists():
    assert len(PROMISES) >= 20
    for promise, tests in PROMISES:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", tests)
        assert named, promise
        for file, test in named:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert test in functions, f"{promise} {file} has no {test}"


def test_every_test_named_is_one_of_a_promise():
    assert len(re.findall(r"\.py::", TEXT)) == sum(tests.count(".py::") for _, tests in PROMISES)
