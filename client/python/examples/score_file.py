"""Perplexity of a text under a served model, as `ultrasketch eval` computes it: windows of
CONTEXT + 1 tokens that overlap by one, every token of a window but its first is predicted.

python score_file.py --target localhost:8001 --model sketch book.txt
"""

import argparse
import math
import pathlib
import sys

from ultrasketch import Client, UltrasketchError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--target", default="localhost:8001")
    parser.add_argument("--model", default="", help="may be left out when the server has one")
    parser.add_argument("--context", type=int, default=512, help="tokens")
    parser.add_argument("--max-tokens", type=int, help="of the text; default: all")
    arguments = parser.parse_args()
    text = arguments.file.read_text(encoding="utf-8")
    sum_logprob = 0.0
    num_predicted = 0
    try:
        with Client(arguments.target) as client:
            ids = client.tokenize(text, model=arguments.model, add_special_tokens=False).ids
            ids = ids[: arguments.max_tokens]
            if len(ids) < 2:
                print(f"expected at least 2 tokens, found {len(ids)}", file=sys.stderr)
                return 1
            for begin in range(0, len(ids) - 1, arguments.context):
                window = ids[begin : begin + arguments.context + 1]
                sum_logprob += client.score(window, model=arguments.model).sum_logprob
                num_predicted += len(window) - 1
                print(f"\r{num_predicted} of {len(ids) - 1} tokens", end="", file=sys.stderr)
    except UltrasketchError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    print(file=sys.stderr)
    print(f"perplexity {math.exp(-sum_logprob / num_predicted):.3f} over {num_predicted} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
