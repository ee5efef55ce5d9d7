"""Fork server: runs Python code in processes forked after the imports, as told by JSON lines on stdin.

    python fork_server.py MODULE ...  # the modules to import first

It stands alone, so that it can run with `python -I` and without hf_medtl.
"""

import contextlib
import gc
import importlib
import json
import os
import random
import socket
import sys
import tempfile
import traceback
from pathlib import Path


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def count_threads(name: str) -> int:
    """Return the number of threads of this process with a name."""
    count = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
            count += (task / "comm").read_text().strip() == name
    return count


def reseed() -> None:
    """Draw new seeds, as a new process does: a common state of the generators would hide missing seeds."""
    import numpy
    import torch

    random.seed()
    numpy.random.seed()  # noqa: NPY002
    torch.seed()


def run_child(request: dict, rank: int, port: int) -> None:
    """Run one process of a request; does not return."""
    os.setpgid(0, 0)
    logs = [Path(request["stdout"].format(rank=rank)), Path(request["stderr"].format(rank=rank))]
    for log in logs:
        log.write_bytes(b"")
    for descriptor, log in enumerate(logs, start=1):
        with log.open("ab", buffering=0) as stream:
            os.dup2(stream.fileno(), descriptor)
    if request["processes"] > 1:
        many = str(request["processes"])
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": many, "LOCAL_WORLD_SIZE": many}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    os.environ |= request.get("env", {})
    tempfile.tempdir = None  # $TMPDIR may be another
    sys.argv = request["argv"]
    status = 1
    try:
        reseed()
        exec(request["code"], {"__name__": "__main__", "rank": rank})
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
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
    for module in sys.argv[1:]:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # collections in the processes leave out these modules and don't copy their pages
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif "wait" in request:
            answer = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in request["wait"]]
        else:
            answer, port = [], free_port()
            for rank in range(request["processes"]):
                pid = os.fork()
                if pid == 0:
                    run_child(request, rank, port)
                answer.append(pid)
        print(json.dumps(answer), flush=True)
