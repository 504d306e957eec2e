#!/usr/bin/env python3
"""Makes blocks.json: blocks of ggml's types with the values that gguf-py gives them.

    pip install gguf==0.19.0 numpy==2.4.6
    python3 make_blocks.py

A list of {"type", "id", "blocks", "values"}: bytes and little-endian float32 numbers as hexadecimal
digits. The bytes are random, but for the scales, which are finite.
"""

import json
import os

import gguf
import numpy as np

T = gguf.GGMLQuantizationType
# Where a block has its half-precision scales.
SCALES = {T.F32: [], T.F16: [0], T.BF16: [], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2],
          T.Q8_0: [0], T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
          T.IQ4_NL: [0], T.IQ4_XS: [0]}
HALVES = [0.0123, -0.5, 6e-8, 1.0, -3.1e-5, 0.0, 100.0, -7e-4]


def main():
    rng = np.random.default_rng(1)
    entries = []
    for kind, places in SCALES.items():
        block_elements, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        count = 8 if block_elements == 1 else 4 if block_elements == 32 else 2
        blocks = rng.integers(0, 256, (count, block_bytes), dtype=np.uint8)
        if kind in (T.F32, T.BF16):  # finite numbers
            blocks[:, -1] = rng.integers(0x38, 0x40, count)
        for i in range(count):
            for j, place in enumerate(places):
                half = np.array([HALVES[(i + 3 * j + int(kind)) % len(HALVES)]], dtype=np.float16)
                blocks[i, place:place + 2] = half.view(np.uint8)
        values = gguf.dequantize(blocks.reshape(1, -1), kind)
        assert np.isfinite(values).all()
        entries.append({"type": kind.name, "id": int(kind), "blocks": blocks.tobytes().hex(),
                        "values": values.astype("<f4").tobytes().hex()})
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "blocks.json"), "w") as out:
        out.write("[\n" + ",\n".join(json.dumps(e) for e in entries) + "\n]\n")


if __name__ == "__main__":
    main()
