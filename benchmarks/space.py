"""How fast a Space answers, and whether it holds when many come at once.

    python benchmarks/space.py latency runs/lite0 runs/vit-s
    python benchmarks/space.py load runs/lite0 --users 50 --minutes 10

Each serves finished runs of classifiers on the loopback address, in a process of its own with two threads. The images
are drawn, no two alike; what each should get is asked of `Predictor` first.

`latency` times one visitor: a question by name, as gradio_client asks it (`/classify`, `/explain`), and what the page
does when a file is dropped on it (upload, reading, answer with map). The first is that of a new visitor, page and
configuration included. `load` lets users ask without a pause for so many minutes, half of them by name and half by the
page; every fourth file is bad. It counts answers, answers that are those of another image, and what was said of bad
files; whether users saw their position in the queue; and measures the server's memory every half minute. It ends
with status 1 if an answer was wrong or the server did not survive.
"""

import argparse
import asyncio
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

from hf_medtl import Predictor
from hf_medtl.data import phantoms

API = "/gradio_api/"
CALLS = 40
SERVE = """
import sys
import torch
from hf_medtl.space.serve import create_app, serve
torch.set_num_threads(int(sys.argv[2]))
serve(create_app(sys.argv[3:], limits={"exempt_clients": ["127.0.0.1"]}), port=int(sys.argv[1]))
"""
BAD = {
    "empty": b"",
    "drawing": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "text": b"not an image",
    "program": b"MZ" + bytes(99),
}


def draw_image(number: int) -> bytes:
    """A PNG that no other number has, 512 pixels wide."""
    image = phantoms.draw_brain(number, 0, bool(number % 2), seed=11, size=128).image
    stream = io.BytesIO()
    Image.fromarray(image).resize((512, 512)).save(stream, "PNG")
    return stream.getvalue()


@contextmanager
def served(runs: list[str], threads: int) -> Iterator[tuple[str, psutil.Process, Path]]:
    """Address, process and temporary folder of a Space."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(port), str(threads), *runs],
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "TMPDIR": folder},
        )
        url = f"http://127.0.0.1:{port}"
        try:
            while True:
                try:
                    httpx.get(url + "/robots.txt", trust_env=False)
                    break
                except httpx.TransportError:
                    if process.poll() is not None:
                        raise SystemExit("The Space did not start.") from None
                    time.sleep(0.1)
            yield url, psutil.Process(process.pid), Path(folder)
        finally:
            process.terminate()
            process.wait(60)


@dataclass
class Seen:
    """What users met with."""

    seconds: list[float] = field(default_factory=list)  # of good files
    bad_seconds: list[float] = field(default_factory=list)
    wrong: int = 0
    messages: Counter[str] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)
    queued: set[int] = field(default_factory=set)  # users who saw their position in the queue
    ranks: list[int] = field(default_factory=list)


class User:
    """One with a session; asks by name and by the page."""

    def __init__(self, url: str, number: int, seen: Seen) -> None:
        self.client = httpx.AsyncClient(base_url=url, timeout=300, trust_env=False)
        self.session, self.number, self.seen = f"user{number}n{time.monotonic_ns()}", number, seen
        self.events: list[dict[str, Any]] = []
        self.values: dict[int, Any] = {}
        self.ids: dict[str, int] = {}

    async def arrive(self) -> None:
        """Open the page."""
        await self.client.get("/")
        config = (await self.client.get("/config")).json()
        self.events = config["dependencies"]
        self.ids = {component["props"].get("elem_id"): component["id"] for component in config["components"]}
        self.values = {component["id"]: component["props"].get("value") for component in config["components"]}

    async def upload(self, content: bytes) -> dict[str, Any]:
        answer = await self.client.post(API + "upload", files={"files": ("a.png", content)})
        answer.raise_for_status()
        return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}

    async def fire(self, event: dict[str, Any], data: list[Any]) -> dict[str, Any]:
        """Join the queue and wait for the answer."""
        body = {"data": data, "fn_index": event["id"], "session_hash": self.session}
        joined = await self.client.post(API + "queue/join", json=body)
        if joined.is_error:
            raise RuntimeError(joined.json()["detail"])
        result: dict[str, Any] = {}
        async with self.client.stream("GET", API + "queue/data", params={"session_hash": self.session}) as lines:
            async for line in lines.aiter_lines():
                message = json.loads(line.removeprefix("data: ")) if line else {}
                if message.get("msg") == "estimation":
                    self.seen.ranks.append(message["rank"])
                    if message["rank"]:
                        self.seen.queued.add(self.number)
                if message.get("msg") == "process_completed":
                    result = message["output"] | {"success": message["success"]}
        for component, value in zip(event["outputs"], result.get("data", ()), strict=False):
            update = isinstance(value, dict) and value.get("__type__") == "update"
            if not update or "value" in value:
                self.values[component] = value["value"] if update else value
        return result

    async def by_name(self, content: bytes, name: str, *more: str) -> tuple[dict[str, Any] | None, str]:
        """What an endpoint answers, or the sentence that it says instead."""
        event = next(event for event in self.events if event["api_name"] == name)
        result = await self.fire(event, [await self.upload(content), *more])
        return (result["data"][0], "") if result["success"] else (None, str(result["error"]))

    async def by_page(self, content: bytes, model: str) -> str:
        """What the page shows when a file is dropped on it."""
        event = next(event for event in self.events if [self.ids["upload"], "upload"] in event["targets"])
        self.values[self.ids["classifier"]] = model
        self.values[self.ids["upload"]] = [await self.upload(content)]
        upload = await self.fire(event, [self.values.get(component) for component in event["inputs"]])
        analysis = next(event for event in self.events if event["trigger_after"] == event["id"])
        result = await self.fire(analysis, [self.values.get(component) for component in analysis["inputs"]])
        return str(upload.get("data")) + str(result.get("data"))


def percentiles(seconds: list[float]) -> str:
    return " | ".join(f"{value:.3f}" for value in np.percentile(seconds, (50, 95))) if seconds else "– | –"


async def latency(url: str, names: list[str]) -> None:
    """One visitor."""
    images = [draw_image(number) for number in range(CALLS + 1)]
    print("| model | asked | first, s | p50, s | p95, s |\n|---|---|---|---|---|")
    for name in names:
        for asked in ("/classify", "/explain", "the page"):
            user, times = User(url, 0, Seen()), []
            for call, content in enumerate(images):
                began = time.monotonic()
                if not call:
                    await user.arrive()
                if asked == "the page":
                    shown = await user.by_page(content, name)
                    answered = "viewer" in shown
                else:
                    more = [name, "gradcam", ""] if asked == "/explain" else [name]
                    answered = (await user.by_name(content, asked[1:], *more))[0] is not None
                if not answered:
                    raise SystemExit(f"{asked} of {name} gave no answer.")
                times.append(time.monotonic() - began)
            print(f"| {name} | {asked} | {times[0]:.3f} | {percentiles(times[1:])} |")


async def load(url: str, name: str, run: str, users: int, minutes: float, process: psutil.Process) -> tuple[Seen, Any]:
    """Many users; what they met with, and the server's memory as (minute, megabytes)."""
    images = [draw_image(number) for number in range(4 * users)]
    truths = Predictor.from_pretrained(run).predict(
        [Image.open(io.BytesIO(content)).convert("RGB") for content in images]
    )
    seen, memory = Seen(), list[tuple[float, float]]()
    began = time.monotonic()

    async def go(number: int) -> None:
        user, turn = User(url, number, seen), number
        await user.arrive()
        while time.monotonic() - began < 60 * minutes:
            turn += 1
            bad = list(BAD)[turn // 4 % len(BAD)] if turn % 4 == 0 else None
            index = (turn * users + number) % len(images)
            content, start = BAD[bad] if bad else images[index], time.monotonic()
            try:
                answer, sentence = None, ""
                if number % 2:
                    sentence = await user.by_page(content, name)
                    first = max(truths[index].probabilities.values())
                    right = f"{100 * first:.1f} %" in sentence or (first > 0.9995 and "99.9 %" in sentence)
                    answered = "viewer" in sentence
                    sentence = sentence.partition("That did not work.</strong> ")[2].partition("<")[0]
                else:
                    answer, sentence = await user.by_name(content, "classify", name)
                    answered = answer is not None
                    right = answer is not None and all(
                        abs(answer["probabilities"][label] - p) < 1e-4
                        for label, p in truths[index].probabilities.items()
                    )
            except (httpx.HTTPError, RuntimeError, KeyError) as error:
                seen.troubles[f"{type(error).__name__}: {error}"] += 1
                continue
            (seen.bad_seconds if bad else seen.seconds).append(time.monotonic() - start)
            if bad and not answered:
                seen.messages[f"{bad}: {sentence}"] += 1
            elif bad or not right:
                seen.wrong += 1

    async def watch() -> None:
        while True:
            memory.append(((time.monotonic() - began) / 60, process.memory_info().rss / 1e6))
            await asyncio.sleep(30 if minutes > 2 else 5)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(go(number) for number in range(users)))
    watching.cancel()
    memory.append(((time.monotonic() - began) / 60, process.memory_info().rss / 1e6))
    return seen, memory


def print_load(seen: Seen, memory: list[tuple[float, float]], users: int) -> None:
    """Print the results of `load`."""
    minutes = memory[-1][0]
    answers = len(seen.seconds) + len(seen.bad_seconds)
    warm = [point for point in memory if point[0] >= minutes / 3]
    slope = np.polyfit(*zip(*warm, strict=True), 1)[0] if len(warm) > 1 else float("nan")
    print("| what | value |\n|---|---|")
    print(f"| users, minutes | {users}, {minutes:.1f} |")
    print(f"| answers to good files | {len(seen.seconds)} |")
    print(f"| answers that were wrong or another's | {seen.wrong} |")
    for sentence, count in sorted(seen.messages.items()):
        print(f"| bad file, {sentence} | {count} |")
    for trouble, count in sorted(seen.troubles.items()):
        print(f"| no answer, {trouble} | {count} |")
    print(f"| good files, p50 and p95 in s | {percentiles(seen.seconds).replace(' | ', ', ')} |")
    print(f"| bad files, p50 and p95 in s | {percentiles(seen.bad_seconds).replace(' | ', ', ')} |")
    print(f"| answers a second | {answers / minutes / 60:.1f} |")
    print(f"| users who saw their position in the queue, furthest | {len(seen.queued)}, {max(seen.ranks, default=0)} |")
    print(f"| memory each half minute, MB | {', '.join(f'{megabytes:.0f}' for _, megabytes in memory)} |")
    print(f"| slope of memory after a third of the time, MB a minute | {slope:+.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("latency", "load"))
    parser.add_argument("runs", nargs="+", help="folders of classifiers; load uses the first")
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    from hf_medtl.space.registry import unique_names

    names = unique_names(options.runs)
    with served(options.runs, options.threads) as (url, process, folder):
        if options.what == "latency":
            asyncio.run(latency(url, names))
            return
        seen, memory = asyncio.run(load(url, names[0], options.runs[0], options.users, options.minutes, process))
        print_load(seen, memory, options.users)
        left = [path for path in folder.rglob("*") if path.is_file() and "incoming" in path.parts]
        print(f"| uploads left on disk | {len(left)} |")
        if seen.wrong or not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
