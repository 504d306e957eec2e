"""Generates the stubs of proto/ultrasketch/v1 and puts them into the wheel; nothing is written into
the source tree."""

import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROTOS = ["ultrasketch/v1/generation.proto", "ultrasketch/v1/model.proto"]


class GenerateStubs(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        protos = self._proto_folder()
        if self.target_name == "sdist":
            for proto in PROTOS:
                build_data["force_include"][str(protos / proto)] = f"proto/{proto}"
            return
        self._generated = pathlib.Path(tempfile.mkdtemp())
        subprocess.run(
            [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={protos}"]
            + [f"--{kind}_out={self._generated}" for kind in ("python", "pyi", "grpc_python")]
            + PROTOS,
            check=True,
        )
        for file in self._generated.rglob("*.py*"):
            build_data["force_include"][str(file)] = str(file.relative_to(self._generated))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self.target_name != "sdist":
            shutil.rmtree(self._generated)

    def _proto_folder(self) -> pathlib.Path:
        root = pathlib.Path(self.root)
        # In a source distribution they lie beside this file, in the repository at its top.
        for folder in (root / "proto", root.parent.parent / "proto"):
            if all((folder / proto).is_file() for proto in PROTOS):
                return folder
        raise FileNotFoundError(
            f"{PROTOS[0]} is neither in {root / 'proto'} nor in {root.parent.parent / 'proto'}: "
            "build from the repository or from a source distribution"
        )
