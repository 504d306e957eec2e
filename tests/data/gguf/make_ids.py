#!/usr/bin/env python3
"""Makes llama-cpp-ids.json: texts with the token ids that llama.cpp gives them.

    pip install gguf==0.19.0 tokenizers==0.23.3
    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36   # unpack; DIR is its vendor/llama.cpp
    python3 make_ids.py DIR

A list of {"vocabulary", "pre", "keys", "cases"}: a tokenizer of ../tokenizer written as a vocabulary in
GGUF, with `keys` besides, and cases {"text", "add", "parse", "ids"}. An empty `pre` is SentencePiece's
model. The same rules as gguf_of_checkpoint.cc make the file. Of llama.cpp the ten files of the
tokenizer alone are compiled, with llama_cpp_tokenizer.cc.
"""

import importlib.util
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import unicodedata

import gguf

HERE = pathlib.Path(os.path.abspath(__file__)).parent
CXX = ["src/unicode-data.cpp", "src/unicode.cpp", "src/llama-arch.cpp", "src/llama-impl.cpp",
       "src/llama-vocab.cpp", "ggml/src/gguf.cpp", "ggml/src/ggml-threading.cpp"]
C = ["ggml/src/ggml.c", "ggml/src/ggml-quants.c"]
INCLUDES = ["include", "src", "ggml/include", "ggml/src", "ggml/src/ggml-cpu"]

STYLES = [("gpt2", "gpt-2", {}), ("gpt2", "default", {}), ("gpt2", "smollm", {}),
          ("gpt2", "refact", {"add_eos_token": True}), ("gpt2", "deepseek-llm", {}),
          ("gpt2", "deepseek-coder", {}), ("gpt2", "tekken", {}), ("llama3", "llama-bpe", {}),
          ("llama3", "smaug-bpe", {"add_bos_token": True}), ("qwen2", "qwen2", {}),
          ("llama2", "", {}), ("llama2", "", {"add_space_prefix": False, "add_bos_token": False}),
          ("llama2-normalized", "", {"add_eos_token": True})]
SPECIAL = {"gpt2": 560, "llama3": 562, "qwen2": 560}


def build(source, folder):
    (folder / "ggml-version.h").write_text('#pragma once\n#define GGML_VERSION "x"\n#define GGML_COMMIT "x"\n')
    includes = ["-I%s" % folder] + ["-I%s" % (source / i) for i in INCLUDES]
    objects = []
    for name in CXX + C + [str(HERE / "llama_cpp_tokenizer.cc")]:
        target = folder / (os.path.basename(name) + ".o")
        language = ["gcc", "-D_GNU_SOURCE"] if name in C else ["g++", "-std=c++17"]
        subprocess.run(language + ["-O1", "-w", *includes, "-c", str(source / name), "-o", str(target)],
                       check=True)
        objects.append(str(target))
    program = folder / "tokenizer"
    # The tokenizer calls none of what is missing.
    subprocess.run(["g++", *objects, "-o", str(program), "-static", "-Wl,--unresolved-symbols=ignore-all", "-ldl",
                    "-lpthread"], check=True)
    return program


def write_vocabulary(path, document, pre, keys, special):
    writer = gguf.GGUFWriter(path, "llama")
    tokens = {i: t for t, i in document["model"]["vocab"].items()}
    types = {}
    for added in document["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = 3 if added["special"] else 4
    is_byte = lambda t: not pre and len(t) == 6 and t.startswith("<0x")
    order = [tokens[i] for i in range(len(tokens))]
    merges = [m if isinstance(m, str) else " ".join(m) for m in document["model"]["merges"]]
    writer.add_tokenizer_model("gpt2" if pre else "llama")
    writer.add_tokenizer_pre(pre or "default")
    writer.add_token_list(order)
    writer.add_token_types([6 if is_byte(t) else types.get(i, 1) for i, t in enumerate(order)])
    if pre:
        writer.add_token_merges(merges)
        writer.add_bos_token_id(special)
        writer.add_eos_token_id(special)
    else:
        scores = {}
        for merge in merges:
            left, right = merge.split(" ")
            scores.setdefault(left + right, -float(len(scores)))
        writer.add_token_scores([scores.get(t, -1e6) for t in order])
    for key, value in keys.items():
        writer.add_bool("tokenizer.ggml." + key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def main():
    spec = importlib.util.spec_from_file_location("texts", HERE.parent / "tokenizer" / "make_oracles.py")
    texts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(texts)
    entries = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        program = build(pathlib.Path(sys.argv[1]).resolve(), folder)
        for vocabulary, pre, keys in STYLES:
            document = json.loads((HERE.parent / "tokenizer" / (vocabulary + ".json")).read_text("utf-8"))
            path = folder / "vocabulary.gguf"
            write_vocabulary(path, document, pre, keys, SPECIAL.get(vocabulary, 0))
            rng = random.Random("%s %s %s" % (vocabulary, pre, keys))
            specials = [t["content"] for t in document["added_tokens"] if not t["content"].startswith("<0x")]
            cases = []
            for i in range(40):
                text = texts.random_text(rng, specials) if i else ""
                # A model's own tokenizer may normalize, llama.cpp does not.
                text = unicodedata.normalize("NFC", text)
                cases.append({"text": text, "add": rng.random() < 0.7, "parse": rng.random() < 0.8})
            lines = ["%d %d %s" % (c["add"], c["parse"], c["text"].encode().hex()) for c in cases]
            run = subprocess.run([str(program), str(path)], input="\n".join(lines) + "\n", check=True,
                                 capture_output=True, text=True)
            for case, ids in zip(cases, run.stdout.split("\n"), strict=False):
                case["ids"] = [int(i) for i in ids.split()]
            entries.append({"vocabulary": vocabulary, "pre": pre, "keys": keys, "special": SPECIAL.get(vocabulary),
                            "cases": cases})
    lines = ",\n".join(json.dumps(e, ensure_ascii=False) for e in entries)
    (HERE / "llama-cpp-ids.json").write_text("[\n" + lines + "\n]\n", "utf-8")


if __name__ == "__main__":
    main()
