"""The examples, as they are."""

import json
import pathlib
import re
import subprocess
import urllib.request

import grpc
import pytest

import ultrasketch
from conftest import BIN, MODELS, REPOSITORY, SAMPLE_TEXT, LiveServer, run_example


def completed(live: LiveServer) -> int:
    with urllib.request.urlopen(f"http://{live.metrics}/metrics") as page:
        text = page.read().decode()
    match = re.search(
        r'^ultrasketch_requests_total\{code="OK",model="sketch"\} (\d+)',
        text,
        re.MULTILINE,
    )
    assert match is not None
    return int(match.group(1))


def test_streams_to_the_terminal(live: LiveServer) -> None:
    options = ("--target", live.target, "--model", "sketch")
    result = run_example("stream.py", *options, "--max-tokens", "8", "--seed", "1", "It was")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("It was")
    assert re.search(r"^\[8 tokens, \d+ tokens/s, seed 1\]$", result.stderr, re.MULTILINE)
    result = run_example("stream.py", "--target", live.target, "--model", "nobody", "It was")
    assert result.returncode == 1
    assert "MODEL_NOT_FOUND" in result.stderr


def test_scores_a_file_as_the_command_does(live: LiveServer) -> None:
    result = run_example(
        "score_file.py",
        "--target",
        live.target,
        "--model",
        "sketch",
        "--max-tokens",
        "300",
        "--context",
        "200",
        str(SAMPLE_TEXT),
    )
    assert result.returncode == 0, result.stderr
    match = re.fullmatch(r"perplexity (\S+) over (\d+) tokens\n", result.stdout)
    assert match is not None
    command: list[str | pathlib.Path] = [BIN / "ultrasketch", "eval", "--json", "--context", "200"]
    command += ["--max-tokens", "300", "--model", MODELS / "classics-20m-sketch"]
    command += ["--text", SAMPLE_TEXT]
    evaluated = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert float(match.group(1)) == pytest.approx(evaluated["perplexity"], abs=0.001)
    assert int(match.group(2)) == evaluated["tokens"]


def test_a_batch_goes_on_where_it_stopped(live: LiveServer, tmp_path: pathlib.Path) -> None:
    questions, answers = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    lines = [{"prompt": f"Chapter {n}", "max_tokens": 4, "seed": n} for n in range(1, 6)]
    lines[3]["max_tokens"] = 0
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = (
        "--target",
        live.target,
        "--model",
        "sketch",
        str(questions),
        str(answers),
    )

    result = run_example("batch.py", *arguments)
    assert result.returncode == 1
    assert "1 failed" in result.stderr
    first = {line["line"]: line for line in map(json.loads, answers.read_text().splitlines())}
    assert sorted(first) == [1, 2, 3, 4, 5]
    assert "max_tokens" in first[4]["error"]

    # As after an interruption: one answer is missing, one is cut short, and the input is mended.
    kept = [json.dumps(first[n]) for n in (2, 4, 5)]
    answers.write_text("".join(line + "\n" for line in kept) + json.dumps(first[3])[:20])
    lines[3]["max_tokens"] = 4
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = run_example("batch.py", *arguments)
    assert result.returncode == 0, result.stderr
    assert "2 lines have an answer, 3 to go" in result.stderr
    second = [json.loads(line) for line in answers.read_text().splitlines()]
    assert sorted(line["line"] for line in second) == [1, 2, 3, 4, 5]
    assert {line["line"]: line for line in second}[3] == first[3]


def test_requests_go_round_the_replicas(
    live: LiveServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = LiveServer(
        tmp_path_factory.mktemp("replica") / "log",
        "--model",
        f"sketch={MODELS / 'classics-20m-sketch'}",
    )
    try:
        before = completed(live)
        result = run_example(
            *("round_robin.py", "--target", f"ipv4:{live.target},{other.target}"),
            *("--model", "sketch", "--requests", "20"),
        )
        assert result.returncode == 0, result.stderr
        assert len(result.stdout.splitlines()) == 20
        assert completed(live) - before + completed(other) == 20
    finally:
        other.stop()


def test_fans_out(live: LiveServer) -> None:
    options = ("--target", live.target, "--model", "sketch", "--max-tokens", "8")
    result = run_example("fan_out.py", *options, "--branches", "6", "The secret was")
    assert result.returncode == 0, result.stderr
    assert re.match(r"-\d+\.\d+ The secret was", result.stdout)
    result = run_example("fan_out.py", *options, "--max-tokens", "0", "The secret was")
    assert result.returncode == 1
    assert "INVALID_ARGUMENT: max_tokens" in result.stderr


def test_chats(live: LiveServer) -> None:
    arguments = ("chat.py", "--target", live.target, "--system", "You are brief.")
    result = run_example(*arguments, "--model", "chat", input="Who are you?\nAnd who am I?\n")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.count("> ") == 3
    result = run_example(*arguments, "--model", "sketch", input="Who are you?\n")
    assert "FAILED_PRECONDITION" in result.stderr or "INVALID_ARGUMENT" in result.stderr


def python_blocks(page: str) -> list[str]:
    text = (REPOSITORY / page).read_text()
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    ("page", "count"),
    [
        ("README.md", 1),
        ("client/python/README.md", 1),
        ("docs/kubernetes.md", 1),
        ("docs/python.md", 3),
    ],
)
def test_the_code_of_the_pages_runs(live: LiveServer, page: str, count: int) -> None:
    blocks = python_blocks(page)
    assert len(blocks) == count
    with ultrasketch.Client(live.target) as client:
        for block in blocks:
            # Most close a client of their own; some take one as given. Its server has several models.
            code = block.replace("localhost:8001", live.target)
            code = code.replace("night\", max_tokens", "night\", model=\"sketch\", max_tokens")
            exec(code, {"ultrasketch": ultrasketch, "client": client, "grpc": grpc})


def test_the_error_of_the_page_is_the_one_that_comes(
    client: ultrasketch.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = (each for each in python_blocks("docs/python.md") if "except" in each)
    exec(block, {"ultrasketch": ultrasketch, "client": client})
    assert capsys.readouterr().out == "temperature\n"
