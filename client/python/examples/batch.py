"""Completes every line of a JSONL file. A line is an object with `prompt` (or `messages`) and any
of Generate's options (max_tokens, temperature, seed, ...); the output has its number, the text and
what it took. Run again after an interruption: lines that have an answer are left out.

python batch.py --target localhost:8001 --model sketch prompts.jsonl answers.jsonl
"""

import argparse
import asyncio
import json
import pathlib
import sys
import time
from typing import Any

from ultrasketch import AsyncClient, UltrasketchError


def answered(output: pathlib.Path) -> set[int]:
    """Lines that need not be asked again. Nothing else is kept: neither errors nor a last line that
    was cut short."""
    if not output.exists():
        return set()
    complete = output.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    kept = [line for line in complete if "error" not in json.loads(line)]
    beside = output.with_name(output.name + ".new")
    beside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    beside.replace(output)
    return {json.loads(line)["line"] for line in kept}


async def answer(client: AsyncClient, number: int, question: dict[str, Any]) -> dict[str, Any]:
    try:
        response = await client.generate(**question)
    except (UltrasketchError, TypeError, ValueError) as error:
        return {"line": number, "error": str(error)}
    completion = response.completions[0]
    return {
        "line": number,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "completion_tokens": response.usage.completion_tokens,
        "seed": response.seed,
    }


async def run(arguments: argparse.Namespace) -> int:
    done = answered(arguments.output)
    questions = [
        (number, json.loads(line))
        for number, line in enumerate(arguments.input.read_text(encoding="utf-8").splitlines(), 1)
        if line.strip() and number not in done
    ]
    print(f"{len(done)} lines have an answer, {len(questions)} to go", file=sys.stderr)
    slots = asyncio.Semaphore(arguments.concurrency)
    failed = 0
    start = time.monotonic()
    async with AsyncClient(arguments.target) as client:
        await client.wait_ready(arguments.model)

        async def limited(number: int, question: dict[str, Any]) -> dict[str, Any]:
            async with slots:
                return await answer(client, number, {"model": arguments.model, **question})

        tasks = [asyncio.create_task(limited(*question)) for question in questions]
        with arguments.output.open("a", encoding="utf-8") as output:
            for count, next_answer in enumerate(asyncio.as_completed(tasks), 1):
                result = await next_answer
                failed += "error" in result
                # Line by line, so that an interruption loses none that is there.
                print(json.dumps(result, ensure_ascii=False), file=output, flush=True)
                rate = count / (time.monotonic() - start)
                left = (len(tasks) - count) / rate
                print(
                    f"\r{count} of {len(tasks)}, {rate:.1f} lines/s, {left:.0f} s left ",
                    end="",
                    file=sys.stderr,
                )
    print(f"\n{failed} failed", file=sys.stderr)
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--target", default="localhost:8001")
    parser.add_argument("--model", default="", help="may be left out when the server has one")
    parser.add_argument("--concurrency", type=int, default=32, help="calls in flight")
    try:
        return asyncio.run(run(parser.parse_args()))
    except UltrasketchError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: run again to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
