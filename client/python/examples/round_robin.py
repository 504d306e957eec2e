"""Calls go round the replicas of a server; one that is lost, loads or drains is passed over.

python round_robin.py --target ipv4:127.0.0.1:8001,127.0.0.1:8011 --model sketch --requests 20

In Kubernetes: --target dns:///ultrasketch-headless:8001, the name of a headless Service.
"""

import argparse
import concurrent.futures
import sys

from ultrasketch import Client, UltrasketchError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True)
    parser.add_argument("--model", default="", help="may be left out when the servers have one")
    parser.add_argument("--requests", type=int, default=20)
    arguments = parser.parse_args()
    with (
        Client(arguments.target, check_health=True) as client,
        concurrent.futures.ThreadPoolExecutor(max_workers=8) as threads,
    ):
        futures = [
            threads.submit(
                client.generate, f"Chapter {number}.", model=arguments.model, max_tokens=16
            )
            for number in range(arguments.requests)
        ]
        try:
            for number, future in enumerate(futures):
                print(number, repr(future.result().text))
        except UltrasketchError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
