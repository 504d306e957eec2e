"""Writes a completion to the terminal as it arrives. Ctrl-C ends it.

python stream.py --target localhost:8001 --model sketch "It was a dark and stormy night"
"""

import argparse
import sys

from ultrasketch import Client, UltrasketchError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("--target", default="localhost:8001")
    parser.add_argument("--model", help="may be left out when the server has one")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--seed", type=int)
    arguments = parser.parse_args()
    options = {name: value for name, value in vars(arguments).items() if name != "target"}
    prompt = options.pop("prompt")
    try:
        with Client(arguments.target) as client, client.stream(prompt, **options) as stream:
            print(prompt, end="", flush=True)
            for delta in stream:
                print(delta.text, end="", flush=True)
            print()
            response = stream.response
    except UltrasketchError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print()  # leaving the stream's `with` has cancelled the call
        return 130
    seconds = response.timing.decode
    tokens = response.usage.completion_tokens
    rate = f", {(tokens - 1) / seconds:.0f} tokens/s" if seconds > 0 else ""
    print(f"[{tokens} tokens{rate}, seed {response.seed}]", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
