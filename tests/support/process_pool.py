"""Runs of recipes as processes that are forked when everything is imported: each costs a second, not ten.

As a script it reads a line of JSON a command from stdin and answers with one.
"""

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
    """The script's other end."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _ask(self, **question: object) -> list[int]:
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, log: Path, *argv: str, processes: int = 1, code: str = "") -> list[int]:
        """Start a run of so many processes, each of which writes to `log`.rank; return their ids.

        Args:
            argv: the recipe's flags.
            code: Python to be executed before; `rank` is there.
        """
        return self._ask(log=str(log), argv=argv, processes=processes, code=code)

    def wait(self, pids: list[int]) -> list[int]:
        """Exit codes, -number of the signal where one ended the process."""
        return self._ask(wait=pids)

    def run(self, log: Path, *argv: str, processes: int = 1, code: str = "") -> None:
        """Start and wait; all must end with 0."""
        codes = self.wait(self.start(log, *argv, processes=processes, code=code))
        assert codes == [0] * processes, "\n".join(p.read_text()[-3000:] for p in log.parent.glob(f"{log.name}.*"))

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def count_threads(name: str) -> int:
    """How many of this process's threads have that name."""
    return sum((task / "comm").read_text().strip() == name for task in Path("/proc/self/task").iterdir())


def run_child(question: dict, rank: int, port: int) -> None:
    """One process of a run; does not return."""
    os.setpgid(0, 0)
    with Path(f"{question['log']}.{rank}").open("wb", buffering=0) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    if question["processes"] > 1:
        many = str(question["processes"])
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": many, "LOCAL_WORLD_SIZE": many}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    sys.argv = ["recipe", *question["argv"]]
    status = 1
    try:
        exec(question["code"], {"rank": rank})
        main({})
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        if status != 1 and (
            left := count_threads("pt_gloo_runloop")
        ):  # at the interpreter's end they may abort the process
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
        question = json.loads(line)
        if "wait" in question:
            answer = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in question["wait"]]
        else:
            answer, port = [], free_port()
            for rank in range(question["processes"]):
                pid = os.fork()
                if pid == 0:
                    run_child(question, rank, port)
                answer.append(pid)
        print(json.dumps(answer), flush=True)
