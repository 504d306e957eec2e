"""What is in the wheel, and that types and versions hold."""

import importlib.metadata
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest
from grpc_health.v1 import health_pb2

from conftest import REPOSITORY
from ultrasketch import _methods
from ultrasketch.v1 import generation_pb2, model_pb2

WHEEL = pathlib.Path(os.environ["ULTRASKETCH_WHEEL"])
PACKAGE = REPOSITORY / "client/python"


def test_the_wheel_has_code_stubs_and_types_and_nothing_else() -> None:
    names = set(zipfile.ZipFile(WHEEL).namelist())
    sources = {
        str(path.relative_to(PACKAGE))
        for path in (PACKAGE / "ultrasketch").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    generated = {
        f"ultrasketch/v1/{name}{suffix}"
        for name in ("generation", "model")
        for suffix in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")
    }
    metadata = {name for name in names if ".dist-info/" in name}
    assert "ultrasketch/py.typed" in sources
    assert names - metadata == sources | generated


def test_the_version_is_the_projects() -> None:
    cmake = (REPOSITORY / "CMakeLists.txt").read_text()
    match = re.search(r"project\(ultrasketch VERSION (\S+)", cmake)
    assert match is not None
    assert importlib.metadata.version("ultrasketch") == match.group(1)


def test_every_call_of_the_services_has_its_method() -> None:
    described = {
        f"/{service.full_name}/{method.name}"
        for file in (generation_pb2.DESCRIPTOR, model_pb2.DESCRIPTOR)
        for service in file.services_by_name.values()
        for method in service.methods
    }
    known = {value.path for value in vars(_methods).values() if isinstance(value, _methods.Method)}
    assert known - {_methods.HEALTH_CHECK.path} == described


def test_health_is_spoken_as_grpcs_own_package_does() -> None:
    request = _methods.health_request("sketch")
    assert request == type(request).FromString(
        health_pb2.HealthCheckRequest(service="sketch").SerializeToString()
    )
    statuses = health_pb2.HealthCheckResponse.ServingStatus
    for name, number in [*statuses.items(), ("UNKNOWN", 77)]:
        sent = health_pb2.HealthCheckResponse(status=number).SerializeToString()
        assert _methods.health_name(_methods.HEALTH_CHECK.response.FromString(sent)) == name


def test_nothing_is_needed_but_what_is_declared() -> None:
    # Each of its releases is for few releases of protobuf.
    program = "import sys; sys.modules['grpc_health'] = None; import ultrasketch"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_oldest_packages_that_are_tried_are_those_that_are_admitted() -> None:
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    admitted = dict(re.findall(r"^(\S+?)>=([^,]+),", line)[0] for line in project["dependencies"])
    lowest = pathlib.Path(__file__).with_name("requirements-lowest.txt").read_text()
    tried = dict(re.findall(r"^(\S+)==(\S+)$", lowest, re.MULTILINE))
    assert admitted == {name: tried[name] for name in admitted}


@pytest.mark.skipif(
    importlib.util.find_spec("mypy") is None, reason="the newest environment has mypy"
)
def test_types_are_strict() -> None:
    examples = sorted((PACKAGE / "examples").glob("*.py"))
    tests = sorted(pathlib.Path(__file__).parent.glob("*.py"))
    configuration = ("--config-file", str(PACKAGE / "pyproject.toml"))
    for checked in (["-p", "ultrasketch"], examples, tests):
        subprocess.run([sys.executable, "-m", "mypy", *configuration, *checked], check=True)
