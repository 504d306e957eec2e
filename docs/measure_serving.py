#!/usr/bin/env python3
"""Measures what docs/serving.md says of a server under load, and prints it as a table.

  docs/measure_serving.py BIN_DIR [ROW]... [--model DIR] [--pairs 3] [--seconds 10]

Client and server share the machine, which should do nothing else: what is compared is measured in
pairs, one right after the other, and the table has the medians of the pairs' ratios.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
TICKS = os.sysconf("SC_CLK_TCK")


class Server:
    """A running ultrasketchd."""

    def __init__(self, process: subprocess.Popen, address: str) -> None:
        self.process = process
        self.address = address

    def serving_seconds(self) -> float:
        """Processor time so far of all threads but those that compute."""
        ticks = 0
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir():
            name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
            if name not in ("engine_loop", "engine_worker"):
                ticks += sum(int(field) for field in rest.split()[11:13])
        return ticks / TICKS

    def resident_mib(self) -> float:
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


class Bench:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.bin = pathlib.Path(arguments.bin)
        self.model = arguments.model
        self.pairs = arguments.pairs
        self.seconds = arguments.seconds
        self.seed = int(time.time())

    @contextmanager
    def server(self, *flags: str, names: tuple[str, ...] = ("m",)) -> Iterator[Server]:
        models = [f"--model={name}={self.model}" for name in names]
        process = subprocess.Popen(
            [self.bin / "ultrasketchd", *models, "--listen=127.0.0.1:0", "--metrics-listen=none",
             *flags],
            stderr=subprocess.PIPE, text=True)
        try:
            address = next(match[1] for line in process.stderr
                           if (match := re.search(r"event=serving listen=(\S+)", line)))
            # What it goes on to write must not fill the pipe.
            subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
            time.sleep(3)  # the overhead of sketching is measured, the heap is trimmed
            yield Server(process, address)
        finally:
            process.terminate()
            process.wait()

    def start(self, *command: str) -> subprocess.Popen:
        self.seed += 1  # equal seeds would find each other's prompts in the prefix cache
        return subprocess.Popen(
            [self.bin / "ultrasketch", "bench", *command, "--seed", str(self.seed), "--duration",
             f"{self.seconds}s", "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def finish(self, process: subprocess.Popen) -> dict:
        return json.loads(process.communicate()[0])["runs"][0]

    def serve(self, server: Server, *flags: str, model: str = "m") -> dict:
        return self.finish(
            self.start("serve", "--target", server.address, "--model", model, *flags))

    def engine(self, *flags: str) -> dict:
        return self.finish(self.start("engine", "--model", self.model, *flags))


def rate(run: dict) -> float:
    return run["output_tokens_per_second"]


def median(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def one_stream(bench: Bench) -> str:
    load = ("--concurrency=1", "--prompt-tokens=16", "--output-tokens=200")
    added = []
    with bench.server() as server:
        for _ in range(bench.pairs):
            engine = rate(bench.engine(*load))
            added.append(1e6 / rate(bench.serve(server, *load)) - 1e6 / engine)
    return f"{median(added)} us a token more than the engine alone"


def many_streams(bench: Bench) -> str:
    load = ("--concurrency=64", "--prompt-tokens=16", "--output-tokens=200")
    shares, own, client = [], [], []
    with bench.server() as server:
        for _ in range(bench.pairs):
            engine = rate(bench.engine(*load))
            before = server.serving_seconds()
            run = bench.serve(server, *load)
            spent = server.serving_seconds() - before
            shares.append(rate(run) / engine)
            tokens = run["tokens"]["output"] + 64 * 200  # warm-up
            own.append(1e6 * spent / tokens)
            client.append(1e6 * run["client"]["cpu_seconds"] / tokens)
    return (f"{median(shares)} of the engine's rate; processor time a token: server without "
            f"its engine {statistics.median(own):.0f} us, client {statistics.median(client):.0f} us")


def storm(bench: Bench, *flags: str) -> str:
    shares, p99, server_us, client_us, refused = [], [], [], [], []
    few = ("--concurrency=64", "--clients=64", "--prompt-tokens=16", "--output-tokens=32")
    many = ("--concurrency=500", "--clients=500", *few[2:])
    with bench.server() as server:
        for _ in range(bench.pairs):
            calm = rate(bench.serve(server, *few, *flags))
            before = server.serving_seconds()
            run = bench.serve(server, *many, *flags)
            spent = server.serving_seconds() - before
            shares.append(rate(run) / calm)
            rejections = run["rejection_seconds"]
            p99.append(1e3 * rejections["p99"])
            refused.append(rejections["count"] / run["seconds"])
            server_us.append(1e6 * spent / max(1, rejections["count"]))
            client_us.append(1e6 * run["client"]["cpu_seconds"] / max(1, rejections["count"]))
    text = (f"{median(shares)} of the tokens/s of 64 clients; "
            f"{statistics.median(refused):.0f} refusals a second, p99 {median(p99)} ms")
    if "--retry" in flags:
        return text
    return (f"{text}; processor time a refusal: server without its engine "
            f"{statistics.median(server_us):.0f} us, client {statistics.median(client_us):.0f} us")


def two_models(bench: Bench) -> str:
    load = ("--concurrency=64", "--prompt-tokens=16", "--output-tokens=64")
    ratios = []
    with bench.server(names=("a", "b")) as server:
        for _ in range(bench.pairs):
            turns = (rate(bench.serve(server, *load, model="a")) +
                     rate(bench.serve(server, *load, model="b"))) / 2
            both = [bench.start("serve", "--target", server.address, "--model", name, *load)
                    for name in ("a", "b")]
            ratios.append(sum(rate(bench.finish(process)) for process in both) / turns)
    return f"{median(ratios)} of the tokens/s of one after the other"


def swaps(bench: Bench) -> str:
    load = ("--concurrency=64", "--prompt-tokens=16", "--output-tokens=32")
    with bench.server() as server:
        process = bench.start("serve", "--target", server.address, "--model", "m", *load)
        seconds = []
        while process.poll() is None:
            begin = time.time()
            subprocess.run([bench.bin / "ultrasketch", "models", "load", "m", "--target",
                            server.address], check=True, capture_output=True)
            seconds.append(time.time() - begin)
        run = bench.finish(process)
    failed = sum(error["count"] for error in run["errors"])
    return (f"{run['requests']['ok']} requests during {len(seconds)} swaps, {failed} failed; "
            f"a swap takes {1e3 * statistics.median(seconds):.0f} ms")


def shared_prefix(bench: Bench) -> str:
    load = ("--concurrency=1", "--shared-prefix-tokens=800", "--prompt-tokens=8",
            "--output-tokens=8")
    times = []
    for flags in ((), ("--prefix-cache=off",)):
        with bench.server(*flags) as server:
            run = bench.serve(server, *load)
            times.append(1e3 * run["time_to_first_token_seconds"]["p50"])
    return f"{times[0]:.1f} ms; {times[1]:.1f} ms without the prefix cache"


def idle(bench: Bench) -> str:
    with bench.server() as server:
        time.sleep(6)  # the heap is trimmed
        return f"{server.resident_mib():.0f} MiB"


ROWS: dict[str, tuple[str, Callable[[Bench], str]]] = {
    "one": ("one stream", one_stream),
    "many": ("64 streams on one connection", many_streams),
    "retry": ("500 clients that come again when the server says",
              lambda bench: storm(bench, "--retry")),
    "storm": ("500 clients that come again at once", storm),
    "models": ("two models, 64 streams each, together", two_models),
    "swaps": ("swaps under load", swaps),
    "prefix": ("time to first token behind a shared prefix of 800 tokens", shared_prefix),
    "idle": ("resident memory, loaded and idle", idle),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bin")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of: {', '.join(ROWS)}")
    parser.add_argument("--model", default=REPOSITORY / "deploy/models/classics-20m-sketch")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=10)
    arguments = parser.parse_args()
    if unknown := set(arguments.rows) - set(ROWS):
        parser.error(f"expected rows of {', '.join(ROWS)}, found {', '.join(sorted(unknown))}")
    bench = Bench(arguments)
    print("| | Seen |\n|---|---|")
    for name in arguments.rows or ROWS:
        title, measure = ROWS[name]
        print(f"| {title} | {measure(bench)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
