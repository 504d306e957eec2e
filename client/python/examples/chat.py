"""A conversation with a model that has a chat template. Ctrl-C ends an answer, Ctrl-D the session.

python chat.py --target localhost:8001 --model chat --system "You are brief."
"""

import argparse
import sys

from ultrasketch import ChatMessage, Client, UltrasketchError


def reply(client: Client, model: str, messages: list[ChatMessage]) -> str:
    """Prints the answer as it comes; what there is of it when it is interrupted."""
    parts = []
    with client.stream(messages=messages, model=model) as stream:
        try:
            for delta in stream:
                parts.append(delta.text)
                print(delta.text, end="", flush=True)
        except KeyboardInterrupt:
            print(" [interrupted]", end="")
    print()
    return "".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="localhost:8001")
    parser.add_argument("--model", default="", help="may be left out when the server has one")
    parser.add_argument("--system", help="a first message that says how to answer")
    arguments = parser.parse_args()
    messages: list[ChatMessage] = []
    if arguments.system:
        messages.append({"role": "system", "content": arguments.system})
    with Client(arguments.target) as client:
        while True:
            try:
                messages.append({"role": "user", "content": input("> ")})
                answer = reply(client, arguments.model, messages)
                messages.append({"role": "assistant", "content": answer})
            except (EOFError, KeyboardInterrupt):
                print()
                return 0
            except UltrasketchError as error:
                messages.pop()
                print(error, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
