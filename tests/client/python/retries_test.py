"""When calls are tried again, against a server that refuses as it is told."""

import asyncio
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2

import ultrasketch
from conftest import FakeServer, Refusal, wait_until
from ultrasketch import AsyncClient, Client, RetryPolicy
from ultrasketch._errors import make_error
from ultrasketch._retry import Retries, RetryBudget

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
QUICK = RetryPolicy(initial_backoff=0.01)


def test_a_policy_is_of_numbers() -> None:
    for name in ("initial_backoff", "max_backoff", "max_delay", "budget"):
        for value in (-1.0, float("nan")):
            with pytest.raises(ValueError, match=f"^{name}: expected at least 0"):
                RetryPolicy(**{name: value})  # type: ignore[arg-type]


def test_the_servers_delay_is_waited_out(fake: FakeServer) -> None:
    fake.refusals = [
        Refusal(EXHAUSTED, "QUEUE_FULL", delay=0.2),
        Refusal(EXHAUSTED, "QUEUE_FULL", pushback="100"),
    ]
    with Client(fake.target) as client:
        assert client.generate("a").text == "answer to a"
    assert len(fake.times) == 3
    assert fake.times[1] - fake.times[0] >= 0.2
    assert fake.times[2] - fake.times[1] >= 0.1
    assert len({call["x-request-id"] for call in fake.calls}) == 1


def test_what_stays_the_same_is_not_tried_again(fake: FakeServer) -> None:
    with Client(fake.target, retry=QUICK) as client:
        for refusal in [
            Refusal(EXHAUSTED),
            Refusal(EXHAUSTED, "QUEUE_FULL", delay=0.01, pushback="-1"),
            Refusal(EXHAUSTED, "QUEUE_FULL", delay=1000),
            Refusal(UNAVAILABLE, "FAILED"),
            Refusal(grpc.StatusCode.INTERNAL),
        ]:
            fake.refusals = [refusal]
            fake.calls.clear()
            with pytest.raises(ultrasketch.UltrasketchError) as error:
                client.generate("a")
            assert len(fake.calls) == error.value.attempts == 1


def test_unavailable_servers_are_tried_again(fake: FakeServer) -> None:
    fake.refusals = [Refusal(UNAVAILABLE, "LOADING"), Refusal(UNAVAILABLE, "DRAINING")]
    with Client(fake.target, retry=QUICK) as client:
        assert client.generate("a").text == "answer to a"
        fake.refusals = [Refusal(UNAVAILABLE, "LOADING")] * 10
        with pytest.raises(ultrasketch.Unavailable, match=r"tried 5 times") as error:
            client.generate("a")
        assert error.value.attempts == 5
        assert error.value.reason == "LOADING"


def test_nobody_waits_past_the_deadline(fake: FakeServer) -> None:
    fake.refusals = [Refusal(EXHAUSTED, "QUEUE_FULL", delay=30)]
    with Client(fake.target) as client:
        start = time.monotonic()
        with pytest.raises(ultrasketch.ResourceExhausted) as error:
            client.generate("a", timeout=20)
        assert time.monotonic() - start < 20
        assert error.value.retry_delay == 30
        assert error.value.reason == "QUEUE_FULL"


def test_streams_are_tried_again_before_they_begin_only(fake: FakeServer) -> None:
    fake.refusals = [Refusal(EXHAUSTED, "QUEUE_FULL", delay=0.01)]
    with Client(fake.target, retry=QUICK) as client:
        assert client.stream("a").read().text == "begun"
        assert len(fake.calls) == 2
        fake.break_stream_with = Refusal(EXHAUSTED, "QUEUE_FULL", delay=0.01)
        with pytest.raises(ultrasketch.ResourceExhausted):
            client.stream("a").read()
        assert len(fake.calls) == 3


def test_asyncio_retries_the_same_way(fake: FakeServer) -> None:
    async def main() -> None:
        async with AsyncClient(fake.target, retry=QUICK) as client:
            fake.refusals = [Refusal(EXHAUSTED, "QUEUE_FULL", delay=0.2)]
            assert (await client.generate("a")).text == "answer to a"
            assert fake.times[1] - fake.times[0] >= 0.2
            fake.refusals = [Refusal(UNAVAILABLE, "LOADING")]
            assert (await client.stream("a").read()).text == "begun"
            assert len(fake.calls) == 4
            fake.break_stream_with = Refusal(UNAVAILABLE)
            with pytest.raises(ultrasketch.Unavailable):
                await client.stream("a").read()
            assert len(fake.calls) == 5
            # What the server cancels is an error of the call, too.
            fake.break_stream_with = Refusal(grpc.StatusCode.CANCELLED)
            with pytest.raises(ultrasketch.Cancelled):
                await client.stream("a").read()

    asyncio.run(main())


def test_a_stream_that_waits_to_be_tried_again_is_cancelled(fake: FakeServer) -> None:
    fake.refusals = [Refusal(EXHAUSTED, "QUEUE_FULL", delay=30)]
    with Client(fake.target) as client:
        stream = client.stream("a")
        timer = threading.Timer(0.1, stream.cancel)
        timer.start()
        start = time.monotonic()
        with pytest.raises(ultrasketch.Cancelled):
            stream.read()
        assert time.monotonic() - start < 30
        assert len(fake.calls) == 1


def test_many_who_were_refused_together_come_back_apart() -> None:
    error = make_error(EXHAUSTED, "full", retry_delay=1.0)
    delays = [Retries(RetryPolicy(), RetryBudget(10)).delay(error, None) for _ in range(200)]
    known = [delay for delay in delays if delay is not None]
    assert len(known) == 200
    assert min(known) >= 1.0
    assert max(known) <= 1.5
    assert max(known) - min(known) > 0.3


def test_retries_run_out_and_are_earned_by_success() -> None:
    budget = RetryBudget(2)
    error = make_error(UNAVAILABLE, "gone")

    def is_tried_again() -> bool:
        return Retries(RetryPolicy(), budget).delay(error, None) is not None

    assert [is_tried_again() for _ in range(3)] == [True, True, False]
    for _ in range(11):
        budget.earn()
    assert [is_tried_again() for _ in range(2)] == [True, False]


def test_backoff_doubles_up_to_its_bound() -> None:
    error = make_error(UNAVAILABLE, "gone")
    policy = RetryPolicy(max_attempts=8, initial_backoff=1.0, max_backoff=4.0)
    retries = Retries(policy, RetryBudget(100))
    delays = [retries.delay(error, None) for _ in range(7)]
    for delay, bound in zip(delays, [1, 2, 4, 4, 4, 4, 4], strict=True):
        assert delay is not None
        assert bound / 2 <= delay <= bound
    assert retries.delay(error, None) is None


def test_a_server_that_comes_back_is_found() -> None:
    fake = FakeServer()
    port = fake.port
    fake.stop()
    policy = RetryPolicy(max_attempts=100, initial_backoff=0.1)
    with Client(f"localhost:{port}", retry=policy, timeout=60) as client:
        answers: list[str] = []
        caller = threading.Thread(target=lambda: answers.append(client.generate("a").text))
        caller.start()
        time.sleep(0.3)
        server = None
        try:
            server = FakeServer(port=port)
            caller.join(60)
        finally:
            if server is not None:
                server.stop()
    assert answers == ["answer to a"]


def test_replicas_that_do_not_serve_are_left_out_when_asked_for() -> None:
    first, second = FakeServer(), FakeServer()
    target = f"ipv4:127.0.0.1:{first.port},127.0.0.1:{second.port}"
    statuses = health_pb2.HealthCheckResponse
    try:
        first.health.set("", statuses.NOT_SERVING)
        second.health.set("", statuses.SERVING)
        with Client(target, check_health=True, retry=QUICK) as client:
            for _ in range(10):
                client.generate("a")
            assert (len(first.calls), len(second.calls)) == (0, 10)
            first.health.set("", statuses.SERVING)
            second.health.set("", statuses.NOT_SERVING)

            def first_called() -> bool:
                client.generate("a")
                return len(first.calls) > 0

            wait_until(first_called)
    finally:
        first.stop()
        second.stop()


def test_calls_go_round_the_replicas_and_pass_over_one_that_is_gone() -> None:
    first, second = FakeServer(), FakeServer()
    target = f"ipv4:127.0.0.1:{first.port},127.0.0.1:{second.port}"
    try:
        with Client(target, retry=QUICK) as client:
            # Both are connected to after a while.
            def both_called() -> bool:
                client.generate("a")
                return len(first.calls) > 0 and len(second.calls) > 0

            wait_until(both_called)
            first.calls.clear()
            second.calls.clear()
            for _ in range(10):
                client.generate("a")
            assert len(first.calls) == len(second.calls) == 5
            first.stop()
            for _ in range(10):
                client.generate("a")
            assert len(second.calls) == 15
    finally:
        first.stop()
        second.stop()
