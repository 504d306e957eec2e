#!/usr/bin/env bash
# tritonclient 2.73.0 (PyPI) with NumPy 2 cannot read the outputs of a server that sends them as
# InferTensorContents, as the Open Inference Protocol allows.
#
# Seen, with numpy 2.4.6, for InferResult.as_numpy of a well-formed ModelInferResponse:
#   BYTES in raw_output_contents:      [b'a' b'bc']
#   BYTES in contents.bytes_contents:  ValueError Unable to avoid copy while creating an array ...
#   FP32 in contents.fp32_contents:    ValueError cannot reshape array of size 0 into shape (2,)
# It asks for np.array(..., copy=False), which NumPy 2 refuses, and looks at no other field of
# contents. So a server for these clients fills raw_output_contents. Exits non-zero when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  'tritonclient[grpc]==2.73.0' numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import struct
import sys

from tritonclient.grpc import InferResult, service_pb2


def response(datatype, size):
    message = service_pb2.ModelInferResponse()
    output = message.outputs.add(name="x", datatype=datatype)
    output.shape.append(size)
    return message, output


def read(message):
    try:
        return str(InferResult(message).as_numpy("x"))
    except Exception as error:
        return f"{type(error).__name__} {error}".splitlines()[0]


raw, _ = response("BYTES", 2)
raw.raw_output_contents.append(struct.pack("<I1sI2s", 1, b"a", 2, b"bc"))
texts, output = response("BYTES", 2)
output.contents.bytes_contents.extend([b"a", b"bc"])
numbers, output = response("FP32", 2)
output.contents.fp32_contents.extend([1.0, 2.0])
results = [read(raw), read(texts), read(numbers)]
print("BYTES in raw_output_contents:     ", results[0])
print("BYTES in contents.bytes_contents: ", results[1])
print("FP32 in contents.fp32_contents:   ", results[2])
sys.exit(not (results[0] == "[b'a' b'bc']" and results[1].startswith("ValueError Unable to avoid copy")
              and results[2].startswith("ValueError cannot reshape")))
PYTHON
