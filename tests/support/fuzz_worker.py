"""Fuzzing in forked processes, which may hang, die or take all memory without harm to the tests."""

import contextlib
import gc
import io
import logging
import os
import random
import select
import signal
import sys
import tempfile
import traceback
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_medtl.errors import MedtlError
from tests.support.mutations import OUTSIDE, mutate

SECONDS = 20
MEMORY = 1_500 << 20  # bytes that one input may take
LIBRARIES = tuple(
    os.path.realpath(path)
    for path in (sys.prefix, sys.base_prefix, "/usr", "/lib", "/proc", "/sys", "/dev", "/etc/ssl", "/etc/mime.types")
)
FORBIDDEN = ("pickle.find_class", "socket.connect", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")


@dataclass(frozen=True)
class Target:
    """A function that users' files reach.

    Attributes:
        name: Name of the target.
        seeds: Name -> content of valid files.
        read: Called with a folder, the name and the content of a mutated file; returns a problem of the result,
            "" if it looks right.
        refusals: Errors with which the function may refuse a file.
        text: True if the values in the files are text.
        prepare: Called with a folder once, before all calls of `read`.
    """

    name: str
    seeds: Mapping[str, bytes]
    read: Callable[[Path, str, bytes], str]
    refusals: tuple[type[Exception], ...] = (MedtlError,)
    text: bool = False
    prepare: Callable[[Path], None] | None = None

    def draw(self, seed: int, number: int, outside: str) -> tuple[str, bytes]:
        """Return the name of the seed file and the content of an input."""
        rng = random.Random(zlib.crc32(f"{self.name} {seed} {number}".encode()))
        name = sorted(self.seeds)[number % len(self.seeds)]
        return name, mutate(rng, name, self.seeds, self.text).replace(OUTSIDE.encode(), outside.encode())


@dataclass
class Findings:
    """Results of a campaign.

    Attributes:
        counts: "read" and "refused" -> number of inputs.
        failures: number of the input -> what is wrong.
        peak: Bytes of memory that the worst input took.
    """

    counts: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)
    peak: int = 0


def fuzz(target: Target, folder: Path, number: int, seed: int = 0) -> Findings:
    """Read mutated files in forked processes, each until it fails.

    Args:
        target: What to test.
        folder: An empty folder, below which the function may read and write.
        number: Number of inputs.
        seed: Of the mutations.
    """
    findings, begin = Findings(), 0
    outside = folder / "outside" / "secret.png"
    outside.parent.mkdir(parents=True, exist_ok=True)
    outside.write_bytes(b"secret")
    work = folder / "work"
    work.mkdir(exist_ok=True)
    if target.prepare:
        target.prepare(work)
    while begin < number:
        begin = _run_process(target, work, outside, range(begin, number), seed, findings)
    return findings


def _run_process(target: Target, folder: Path, outside: Path, numbers: range, seed: int, findings: Findings) -> int:
    """Run the inputs in one process; return the number of the next one after its end."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        status = 1
        try:
            _work(
                target, folder, outside, numbers, seed, os.fdopen(writer, "w", buffering=1, errors="backslashreplace")
            )
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    current, buffer = numbers.start, b""
    try:
        while select.select([reader], [], [], SECONDS)[0]:
            data = os.read(reader, 1 << 16)
            if not data:
                _, status = os.waitpid(pid, 0)
                if current < numbers.stop and current not in findings.failures:
                    findings.failures[current] = f"the process ended with {os.waitstatus_to_exitcode(status)}"
                return current + 1
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                kind, _, text = line.decode().partition(" ")
                if kind == "failed":
                    findings.failures[current] = text.encode().decode("unicode_escape")
                elif kind == "peak":
                    findings.peak = max(findings.peak, int(text))
                    current += 1
                else:
                    findings.counts[kind] += 1
        findings.failures[current] = f"no end after {SECONDS} s"
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return current + 1
    finally:
        os.close(reader)


def _work(target: Target, folder: Path, outside: Path, numbers: range, seed: int, answers: io.TextIOBase) -> None:
    """Run inputs in this process; end it after one that took too much memory."""
    import resource  # not on Windows

    os.chdir(folder)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 3 * MEMORY,) * 2)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    printed = tempfile.TemporaryFile(dir=folder.parent)  # noqa: SIM115
    for descriptor in (1, 2):
        os.dup2(printed.fileno(), descriptor)
    sys.stdout = sys.stderr = open(os.dup(2), "w", buffering=1, errors="backslashreplace")  # noqa: PTH123, SIM115
    _show_logs()
    events = _watch(folder)
    gc.freeze()
    end = 0
    for number in numbers:
        name, content = target.draw(seed, number, str(outside))
        events.clear()
        kind, problem = _examine(target, folder, name, content)
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - base
        text = os.pread(printed.fileno(), 1 << 20, end).decode("utf-8", "backslashreplace")
        end = os.fstat(printed.fileno()).st_size
        if strange := _control_characters(text.replace("\n", "")):
            problem = problem or f"printed {strange}: {text[:300]!r}"
        if events:
            problem = problem or f"did {events[:3]}"
        if peak > MEMORY:
            problem = problem or f"took {peak >> 20} MiB"
        if problem:
            answers.write(f"failed {f'{name}: {problem}'.encode('unicode_escape').decode()}\n")
        else:
            answers.write(f"{kind} \n")
        answers.write(f"peak {peak}\n")
        if peak > MEMORY:
            return


def _examine(target: Target, folder: Path, name: str, content: bytes) -> tuple[str, str]:
    """Return "read" or "refused", and what is wrong."""
    try:
        return "read", target.read(folder, name, content)
    except target.refusals as error:
        text = str(error)
        if strange := _control_characters(text):
            return "refused", f"an error with {strange}: {text[:300]!r}"
        if not text.strip() or len(text) > 20_000:
            return "refused", f"an error of {len(text)} characters"
        return "refused", ""
    except BaseException:
        return "failed", traceback.format_exc()[-3000:]


def _control_characters(text: str) -> str:
    """Return the characters of a text that are no part of a line, or that a terminal obeys, as escapes."""
    found = {sign for sign in text if unicodedata.category(sign) in {"Cc", "Zl", "Zp", "Cs"} and sign != "\t"}
    return ascii("".join(sorted(found)))[1:-1] if found else ""


def _show_logs() -> None:
    """Print the messages of the package, as the commands do."""
    from hf_medtl.common import messages

    package = logging.getLogger("hf_medtl")
    package.handlers.clear()
    logging.root.handlers.clear()
    logging.lastResort = None
    messages.show_messages(logging.INFO)


def _watch(folder: Path) -> list[str]:
    """Return a list that gets what this process does outside of the folder and of the installed libraries."""
    allowed = (str(folder), str(Path(__file__).parents[2]), *LIBRARIES, os.environ.get("HF_HOME", str(folder)))
    allowed = (*allowed, str(Path.home() / ".cache" / "matplotlib"))
    allowed = (*allowed, os.environ.get("HF_MEDTL_CACHE", str(folder)))
    events: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FORBIDDEN:
            events.append(f"{event} {arguments!r}"[:200])
        elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.fsdecode(arguments[0])
            with contextlib.suppress(ValueError, OSError):
                real = os.path.realpath(path)
                if not real.startswith(allowed):
                    events.append(f"open {path}"[:200])

    sys.addaudithook(hook)
    return events


def describe(target: Target, findings: Findings) -> Iterator[str]:
    """Yield lines about a campaign, the failures by what is wrong."""
    total = sum(findings.counts.values()) + len(findings.failures)
    counts = ", ".join(f"{number} {kind}" for kind, number in sorted(findings.counts.items()))
    yield f"{target.name}: {total} inputs, {counts}, {len(findings.failures)} failed, {findings.peak >> 20} MiB at most"
    for number, text in findings.failures.items():
        yield f"  {target.name} {number}: {text}"
