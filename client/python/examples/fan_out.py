"""One prompt, many continuations at once, at most CONCURRENCY in flight; the likeliest wins.

python fan_out.py --target localhost:8001 --model sketch "The secret was"
"""

import argparse
import asyncio
import sys

from ultrasketch import AsyncClient, Completion, UltrasketchError


def mean_logprob(completion: Completion) -> float:
    return sum(entry.token.logprob for entry in completion.logprobs) / len(completion.logprobs)


async def run(arguments: argparse.Namespace) -> None:
    slots = asyncio.Semaphore(arguments.concurrency)
    async with AsyncClient(arguments.target, timeout=60.0) as client:

        async def complete(seed: int) -> Completion:
            async with slots:
                response = await client.generate(
                    arguments.prompt,
                    model=arguments.model,
                    seed=seed,
                    max_tokens=arguments.max_tokens,
                    logprobs=0,
                )
                return response.completions[0]

        # When one fails, the group cancels the others, and the server stops working on them.
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(complete(seed)) for seed in range(arguments.branches)]
    best = max((task.result() for task in tasks), key=mean_logprob)
    print(f"{mean_logprob(best):.3f} {arguments.prompt}{best.text}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("--target", default="localhost:8001")
    parser.add_argument("--model", default="", help="may be left out when the server has one")
    parser.add_argument("--branches", type=int, default=16)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=32)
    exit_code = 0
    try:
        asyncio.run(run(parser.parse_args()))
    except* UltrasketchError as errors:
        print(errors.exceptions[0], file=sys.stderr)
        exit_code = 1
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
