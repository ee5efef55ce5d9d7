"""Recipe runs in processes forked after all imports: each starts in one second instead of ten.

Run as a script, it reads one JSON request per line from stdin and writes one JSON answer per line.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class ProcessPool:
    """Client of the fork server in this module."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _ask(self, **request: object) -> list[int]:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, log: Path, *argv: str, processes: int = 1, code: str = "") -> list[int]:
        """Start a run and return its process ids.

        Args:
            log: Path prefix of the logs; each process writes to `log`.rank.
            *argv: Flags of the recipe.
            processes: Number of processes.
            code: Python code executed before the run, with `rank` defined.
        """
        return self._ask(log=str(log), argv=argv, processes=processes, code=code)

    def wait(self, pids: list[int]) -> list[int]:
        """Return exit codes; a negative code is the number of the signal that ended the process."""
        return self._ask(wait=pids)

    def run(self, log: Path, *argv: str, processes: int = 1, code: str = "") -> None:
        """Run to completion and assert that all processes exit with 0."""
        codes = self.wait(self.start(log, *argv, processes=processes, code=code))
        assert codes == [0] * processes, "\n".join(p.read_text()[-3000:] for p in log.parent.glob(f"{log.name}.*"))

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def count_threads(name: str) -> int:
    """Return the number of threads of this process with a name."""
    count = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
            count += (task / "comm").read_text().strip() == name
    return count


def run_child(request: dict, rank: int, port: int) -> None:
    """Run one process of a run; does not return."""
    os.setpgid(0, 0)
    with Path(f"{request['log']}.{rank}").open("wb", buffering=0) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    if request["processes"] > 1:
        many = str(request["processes"])
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": many, "LOCAL_WORLD_SIZE": many}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    sys.argv = ["recipe", *request["argv"]]
    status = 1
    try:
        exec(request["code"], {"rank": rank})
        main({})
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        if status != 1 and (left := count_threads("pt_gloo_runloop")):  # they may abort the process at interpreter exit
            print(f"{left} threads of the process group are left", file=sys.stderr)
            status = 70
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    import traceback

    import torch

    from hf_medtl import main

    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in request["wait"]]
        else:
            answer, port = [], free_port()
            for rank in range(request["processes"]):
                pid = os.fork()
                if pid == 0:
                    run_child(request, rank, port)
                answer.append(pid)
        print(json.dumps(answer), flush=True)
