"""Calls of a live server, blocking and with asyncio."""

import asyncio
import concurrent.futures
import copy
import gc
import math
import multiprocessing
import pickle
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

import ultrasketch
from conftest import LiveServer, wait_until
from ultrasketch import AsyncClient, Client

PROMPT = "It was a dark and stormy night"


def running_requests(live: LiveServer) -> int:
    """As the server's own metrics say."""
    with urllib.request.urlopen(f"http://{live.metrics}/metrics") as page:
        lines = page.read().decode().splitlines()
    return sum(
        int(float(line.split()[-1]))
        for line in lines
        if line.startswith(("ultrasketch_requests_running{", "ultrasketch_requests_waiting{"))
    )


def with_async(live: LiveServer, work: Callable[[AsyncClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with AsyncClient(live.target) as client:
            await work(client)

    asyncio.run(main())


def test_generates(client: Client) -> None:
    response = client.generate(PROMPT, model="sketch", max_tokens=8, seed=2**64 - 1, n=2)
    assert [completion.index for completion in response.completions] == [0, 1]
    assert all(len(completion.token_ids) == 8 for completion in response.completions)
    assert response.completions[0].finish_reason is ultrasketch.FinishReason.LENGTH
    assert response.text == response.completions[0].text != response.completions[1].text
    assert response.seed == 2**64 - 1
    assert response.usage.completion_tokens == 16
    assert response.timing.decode > 0


def test_token_ids_are_a_prompt_too(client: Client) -> None:
    ids = client.tokenize(PROMPT, model="sketch").ids
    options: ultrasketch.GenerateOptions = {
        "model": "sketch",
        "max_tokens": 8,
        "seed": 1,
    }
    assert client.generate(ids, **options).text == client.generate(PROMPT, **options).text


def test_a_stream_is_the_answer_in_parts(client: Client) -> None:
    options: ultrasketch.GenerateOptions = {
        "model": "sketch", "max_tokens": 12, "seed": 3, "n": 2, "logprobs": 1, "prompt_logprobs": 0,
        "stop": [" the"], "logit_bias": {5: -1.5},
    }  # fmt: skip
    whole = client.generate(PROMPT, **options)
    stream = client.stream(PROMPT, **options)
    deltas = list(stream)
    assert len(deltas) > 2
    assert stream.response.completions == whole.completions
    assert stream.response.prompt_logprobs == whole.prompt_logprobs
    assert stream.response.seed == whole.seed
    assert stream.response.usage.completion_tokens == whole.usage.completion_tokens
    assert "".join(delta.text for delta in deltas if delta.index == 1) == whole.completions[1].text


def test_a_stream_has_its_response_at_its_end_only(client: Client) -> None:
    with client.stream(PROMPT, model="sketch", max_tokens=4) as stream:
        with pytest.raises(ValueError, match="not been read to its end"):
            _ = stream.response
        assert stream.read() == stream.response


def test_messages_are_a_prompt_too(client: Client) -> None:
    messages: list[ultrasketch.ChatMessage] = [{"role": "user", "content": "Who are you?"}]
    assert [model.chat for model in client.list_models() if model.name == "chat"] == [True]
    tokens = client.tokenize(messages=messages, model="chat")
    assert client.detokenize(tokens.ids, model="chat") == "[user] Who are you?[assistant]"
    bare = client.tokenize(messages=messages, add_generation_prompt=False, model="chat")
    assert client.detokenize(bare.ids, model="chat") == "[user] Who are you?"
    options: ultrasketch.GenerateOptions = {"model": "chat", "max_tokens": 8, "seed": 1}
    answer = client.generate(messages=messages, **options)
    assert answer.text == client.generate(tokens.ids, **options).text
    assert client.stream(messages=messages, **options).read().text == answer.text
    assert client.score(messages=messages, model="chat").token_ids == tokens.ids
    with pytest.raises(ultrasketch.UltrasketchError, match="chat"):
        client.generate(messages=messages, model="sketch")


def test_scores_and_tokens(client: Client) -> None:
    score = client.score(PROMPT, model="sketch", top_logprobs=2)
    assert len(score.logprobs) == len(score.token_ids) - 1
    assert len(score.logprobs[0].top) == 2
    assert sum(entry.token.logprob for entry in score.logprobs) == pytest.approx(score.sum_logprob)
    tokens = client.tokenize(PROMPT, model="sketch", add_special_tokens=False)
    assert len(tokens.ids) == len(tokens.spellings)
    assert client.detokenize(tokens.ids, model="sketch") == PROMPT


def test_answers_may_be_larger_than_grpcs_default(client: Client) -> None:
    text = "a " * 1_000_000
    assert len(client.tokenize(text, model="sketch").ids) > 500_000


def test_models_are_listed_loaded_and_unloaded(client: Client) -> None:
    states = {model.name: model.state for model in client.list_models()}
    assert states == {
        "sketch": ultrasketch.ModelState.READY,
        "spare": ultrasketch.ModelState.READY,
        "broken": ultrasketch.ModelState.FAILED,
        "chat": ultrasketch.ModelState.READY,
    }
    client.unload_model("spare")
    with pytest.raises(ultrasketch.UltrasketchError):
        client.generate(PROMPT, model="spare", timeout=0.05)
    assert client.load_model("spare").state is ultrasketch.ModelState.READY
    model = client.get_model("spare")
    assert (model.codec, model.num_parameters) == ("fold", 20356992)
    assert model.bits_per_weight_linear <= 0.5
    assert model.memory.weights > 0
    overhead = client.measure_overhead("spare")
    assert overhead.prefill_ratio > 0
    assert overhead.decode_ratio > 0
    measured = client.get_model("spare").sketch_overhead
    assert measured is not None
    assert measured.decode_ratio > 0


def test_waits_until_ready(live: LiveServer, client: Client) -> None:
    client.wait_ready()
    client.wait_ready("sketch")
    assert client.health("sketch") == "SERVING"
    with pytest.raises(ultrasketch.ModelFailed, match="broken could not be loaded: .*config.json"):
        client.wait_ready("broken")
    with pytest.raises(ultrasketch.DeadlineExceeded, match="nobody was not ready.*NOT_FOUND"):
        client.wait_ready("nobody", timeout=2)
    with (
        Client("localhost:1") as nowhere,
        pytest.raises(ultrasketch.DeadlineExceeded, match="the server was not ready"),
    ):
        nowhere.wait_ready(timeout=0.1)


def test_errors_say_what_was_wrong(client: Client) -> None:
    with pytest.raises(ultrasketch.InvalidArgument) as invalid:
        client.generate(PROMPT, model="sketch", temperature=-1, request_id="mine")
    (violation,) = invalid.value.field_violations
    assert violation.field == "temperature"
    assert violation.description in invalid.value.message
    assert invalid.value.request_id == "mine"
    assert invalid.value.attempts == 1
    with pytest.raises(ultrasketch.NotFound, match=r"MODEL_NOT_FOUND\]$") as not_found:
        client.generate(PROMPT, model="nobody")
    assert not_found.value.reason == "MODEL_NOT_FOUND"
    with pytest.raises(ultrasketch.InvalidArgument):
        client.stream(PROMPT, model="sketch", top_p=2).read()


def test_what_cannot_be_sent_is_refused_here(client: Client) -> None:
    with pytest.raises(TypeError, match="max_tokenz"):
        client.generate(PROMPT, max_tokenz=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="max_tokens"):
        client.generate(PROMPT, max_tokens=2**40)
    with pytest.raises(TypeError, match="stop: expected a list"):
        client.generate(PROMPT, stop="the")
    with pytest.raises(TypeError, match="expected either a text"):
        client.generate()
    with pytest.raises(TypeError, match="only messages"):
        client.generate(PROMPT, add_generation_prompt=True)
    with pytest.raises(ValueError, match="target is empty"):
        Client("")


def test_messages_are_checked_as_the_command_checks_them(client: Client) -> None:
    def refuses(kind: type[Exception], message: object, match: str) -> None:
        messages: Any = [{"role": "user", "content": "Who?"}, message]
        for call in (client.generate, client.score, client.tokenize):
            with pytest.raises(kind, match=match):
                call(messages=messages, model="chat")

    refuses(
        ValueError,
        {"role": "user", "content": "Who?", "name": "Ann"},
        r"^messages\[1\]: expected role and content alone, found 'name'$",
    )
    parts = [{"type": "text", "text": "Who?"}]
    refuses(
        TypeError,
        {"role": "user", "content": parts},
        r"^messages\[1\]: content: expected a str, found list$",
    )
    refuses(TypeError, {"role": "user", "content": None}, "content: expected a str, found NoneType")
    refuses(ValueError, {"role": "user"}, r"^messages\[1\] has no content$")
    refuses(ValueError, {"content": "Who?"}, r"^messages\[1\] has no role$")
    refuses(
        TypeError, "Who?", r"^messages\[1\]: expected a mapping with role and content, found str"
    )


def test_text_that_is_no_utf8_is_refused_here(client: Client) -> None:
    with pytest.raises(ValueError, match="^stop: .*surrogates not allowed"):
        client.generate(PROMPT, stop=["\ud800"])
    with pytest.raises(ValueError, match="surrogates not allowed"):
        client.generate("\ud800")


def test_the_callers_limit_of_an_answers_size_stands(client: Client) -> None:
    with pytest.raises(ultrasketch.OutOfRange):
        client.tokenize("a " * 100, model="sketch", max_response_bytes=10)
    with pytest.raises(ultrasketch.OutOfRange):
        client.detokenize([5] * 100, model="sketch", max_response_bytes=10)
    assert client.tokenize(PROMPT, model="sketch", max_response_bytes=-1).ids


def test_timeouts_are_numbers_of_seconds(live: LiveServer, client: Client) -> None:
    with Client(live.target, timeout=math.inf) as patient:
        assert patient.health("sketch") == "SERVING"
        for timeout in [None, math.inf, 1e300, 3e9, 1e10, 100]:
            assert patient.health("sketch", timeout=timeout) == "SERVING"
        patient.wait_ready("sketch", timeout=math.inf)
    for timeout in [math.nan, -1, -math.inf]:
        with pytest.raises(ValueError, match="^timeout: expected seconds of at least 0"):
            client.health(timeout=timeout)
        with pytest.raises(ValueError, match="^timeout"):
            Client(live.target, timeout=timeout)
        with pytest.raises(ValueError, match="^timeout"):
            client.wait_ready(timeout=timeout)

    async def work(client: AsyncClient) -> None:
        for timeout in [math.inf, 1e300, 3e9]:
            assert await client.health("sketch", timeout=timeout) == "SERVING"
        with pytest.raises(ValueError, match="^timeout"):
            await client.health(timeout=math.nan)

    with_async(live, work)


def test_errors_cross_processes_whole() -> None:
    original = ultrasketch.ModelFailed(
        grpc.StatusCode.UNAVAILABLE,
        "no",
        reason="FAILED",
        info={"model": "sketch"},
        retry_delay=1.5,
        may_retry=False,
        field_violations=[ultrasketch.FieldViolation("stop", "is empty")],
        request_id="mine",
    )
    original.attempts = 3
    original.add_note("of the night shift")
    copies = [pickle.loads(pickle.dumps(original, protocol)) for protocol in range(6)]
    for copied in [*copies, copy.copy(original), copy.deepcopy(original)]:
        assert type(copied) is ultrasketch.ModelFailed
        assert vars(copied) == vars(original)
        assert copied.args == original.args
        assert str(copied) == str(original) == "UNAVAILABLE: no [FAILED] (tried 3 times)"


def fail_to_find(target: str) -> None:
    with Client(target) as client:
        client.get_model("nobody")


def test_a_pool_of_processes_outlives_an_error(live: LiveServer) -> None:
    processes = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=processes) as pool:
        for _ in range(2):
            with pytest.raises(ultrasketch.NotFound) as not_found:
                pool.submit(fail_to_find, live.target).result()
            assert not_found.value.reason == "MODEL_NOT_FOUND"


def test_deadlines_end_the_work(live: LiveServer, client: Client) -> None:
    with pytest.raises(ultrasketch.DeadlineExceeded):
        client.stream(PROMPT, model="sketch", max_tokens=900, ignore_eos=True, timeout=0.05).read()
    with (
        Client(live.target, timeout=0.05) as hurried,
        pytest.raises(ultrasketch.DeadlineExceeded),
    ):
        hurried.generate(PROMPT, model="sketch", max_tokens=900, ignore_eos=True)
    wait_until(lambda: running_requests(live) == 0)


def test_leaving_a_stream_cancels_its_call(live: LiveServer, client: Client) -> None:
    stream = client.stream(PROMPT, model="sketch", max_tokens=900, ignore_eos=True)
    for _ in stream:
        break
    wait_until(lambda: running_requests(live) == 0)
    with client.stream(PROMPT, model="sketch", max_tokens=900, ignore_eos=True):
        pass
    wait_until(lambda: running_requests(live) == 0)


def test_a_stream_is_cancelled_from_another_thread(live: LiveServer, client: Client) -> None:
    stream = client.stream(PROMPT, model="sketch", max_tokens=900, ignore_eos=True)
    deltas = iter(stream)
    next(deltas)
    threading.Thread(target=stream.cancel).start()
    with pytest.raises(ultrasketch.Cancelled):
        for _ in deltas:
            time.sleep(0.001)
    wait_until(lambda: running_requests(live) == 0)


def test_asyncio_generates_and_streams(live: LiveServer) -> None:
    async def work(client: AsyncClient) -> None:
        await client.wait_ready("sketch")
        options: ultrasketch.GenerateOptions = {
            "model": "sketch",
            "max_tokens": 12,
            "seed": 3,
        }
        whole = await client.generate(PROMPT, **options)
        async with client.stream(PROMPT, **options) as stream:
            texts = [delta.text async for delta in stream]
        assert "".join(texts) == whole.text == stream.response.text
        ids = (await client.tokenize(PROMPT, model="sketch", add_special_tokens=False)).ids
        assert await client.detokenize(ids, model="sketch") == PROMPT
        score = await client.score(PROMPT, model="sketch")
        assert score.perplexity > 1
        assert {model.name for model in await client.list_models()} >= {
            "sketch",
            "spare",
        }
        await client.unload_model("spare")
        await client.load_model("spare")
        assert (await client.measure_overhead("spare")).decode_ratio > 0
        assert (await client.get_model("spare")).error == ""
        assert await client.health() == "SERVING"

    with_async(live, work)


def test_asyncio_raises_the_same_errors(live: LiveServer) -> None:
    async def work(client: AsyncClient) -> None:
        with pytest.raises(ultrasketch.InvalidArgument) as invalid:
            await client.generate(PROMPT, model="sketch", temperature=-1)
        assert invalid.value.field_violations[0].field == "temperature"
        with pytest.raises(ultrasketch.NotFound):
            await client.stream(PROMPT, model="nobody").read()
        with pytest.raises(ultrasketch.DeadlineExceeded):
            await client.generate(
                PROMPT, model="sketch", max_tokens=900, ignore_eos=True, timeout=0.05
            )
        with pytest.raises(ultrasketch.ModelFailed):
            await client.wait_ready("broken")

    with_async(live, work)


def test_asyncio_cancels_calls(live: LiveServer) -> None:
    endless: ultrasketch.GenerateOptions = {
        "model": "sketch", "max_tokens": 900, "ignore_eos": True,
    }  # fmt: skip

    async def idle() -> None:
        await asyncio.to_thread(wait_until, lambda: running_requests(live) == 0)

    async def work(client: AsyncClient) -> None:
        stream = client.stream(PROMPT, **endless)
        async for _ in stream:
            break
        gc.collect()
        await idle()

        task = asyncio.create_task(client.generate(PROMPT, **endless))
        await asyncio.to_thread(wait_until, lambda: running_requests(live) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await idle()

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.stream(PROMPT, **endless).read()
        await idle()

        # A stream that somebody cancels is an error of the call; the task that reads goes on.
        stream = client.stream(PROMPT, **endless)
        asyncio.get_running_loop().call_later(0.05, stream.cancel)
        with pytest.raises(ultrasketch.Cancelled):
            await stream.read()
        await idle()

    with_async(live, work)
