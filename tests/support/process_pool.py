"""Processes of their own for recipes, commands and user code: each starts in one second instead of ten."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.support.commands import ROOT
from tests.support.fork_server import free_port as free_port

RECIPE = "import hf_medtl; hf_medtl.main({})"
SCRIPT = """
import os, runpy, sys
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class ForkedProcess:
    """A process of the pool, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, pool: "ProcessPool", pid: int) -> None:
        self.pool, self.pid, self.returncode = pool, pid, None

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        if self.returncode is None:
            self.returncode = self.pool.ask(poll=self.pid)
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        """Return the exit code; a negative code is the number of the signal that ended the process."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ProcessPool:
    """Client of `fork_server`.

    Its processes have one hash seed, so sets have the same order in all of them: compare a resumed run with one of
    another process.

    Args:
        *modules: The modules that its processes have imported.
        isolated: Start the server with `python -I`, as for user code that must not find hf_medtl's folder.
    """

    def __init__(self, *modules: str, isolated: bool = False) -> None:
        server = Path(__file__).with_name("fork_server.py")
        self.process = subprocess.Popen(
            [sys.executable, *(["-I"] if isolated else []), server, *modules],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: object) -> Any:
        """Send a request to the server and return its answer."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, log: Path, *argv: object, processes: int = 1, code: str = "") -> list[int]:
        """Start a recipe without defaults and return its process ids.

        Args:
            log: Path prefix of the logs; each process writes to `log`.rank.
            *argv: Flags of the recipe.
            processes: Number of processes.
            code: Python code executed before the run, with `rank` defined.
        """
        output, words = f"{log}.{{rank}}", ["recipe", *map(str, argv)]
        return self.ask(stdout=output, stderr=output, argv=words, processes=processes, code=f"{code}\n{RECIPE}")

    def wait(self, pids: list[int]) -> list[int]:
        """Return exit codes; a negative code is the number of the signal that ended the process."""
        return self.ask(wait=pids)

    def run(self, log: Path, *argv: object, processes: int = 1, code: str = "") -> None:
        """Run a recipe to completion and assert that all processes exit with 0."""
        codes = self.wait(self.start(log, *argv, processes=processes, code=code))
        assert codes == [0] * processes, "\n".join(p.read_text()[-3000:] for p in log.parent.glob(f"{log.name}.*"))

    def start_code(
        self, code: str, *argv: object, stdout: Path = Path(os.devnull), stderr: Path = Path(os.devnull), **env: str
    ) -> ForkedProcess:
        """Start `python -c code argv`; what is read of the environment at import is that of the pool."""
        words = [str(word) for word in argv] if code is SCRIPT else ["-c", *map(str, argv)]
        (pid,) = self.ask(stdout=str(stdout), stderr=str(stderr), argv=words, processes=1, code=code, env=env)
        return ForkedProcess(self, pid)

    def start_script(self, script: object, *argv: object) -> ForkedProcess:
        """Start `python script argv`, with a path from the project root."""
        return self.start_code(SCRIPT, script, *argv)

    def run_code(self, code: str, *argv: object, **env: str) -> subprocess.CompletedProcess:
        """Run `python -c code argv` to completion and capture its output."""
        with tempfile.TemporaryDirectory() as folder:
            stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
            status = self.start_code(code, *argv, stdout=stdout, stderr=stderr, **env).wait()
            return subprocess.CompletedProcess([code, *argv], status, stdout.read_text(), stderr.read_text())

    def run_script(self, script: object, *argv: object, **env: str) -> subprocess.CompletedProcess:
        """Run `python script argv` to completion and capture its output."""
        return self.run_code(SCRIPT, script, *argv, **env)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
