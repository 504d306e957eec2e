#!/usr/bin/env python3
"""Makes prefix-space-oracle.json: what transformers makes of the tokenizers in this folder with
"add_prefix_space" in a tokenizer_config.json beside them.

    pip install transformers==5.24.0 tokenizers==0.23.3
    python3 make_prefix_space_oracle.py

A list of {"tokenizer", "model_type", "model_class", "config", "class", "texts"}: NAME.json as
tokenizer.json, two keys of config.json (model_type and tokenizer_class), tokenizer_config.json, the
class that AutoTokenizer chose, and {"text", "ids", "decoded"}. Left out is what that class changes
besides, where the file's own components are followed here.
"""

import json
import os
import shutil
import tempfile

from transformers import AutoTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
TEXTS = ["hello world", " hello", "hello</s>world <|endoftext|>it's 12, don't", "Grüße,\n 日本"]
CASES = []


def add(tokenizer, config, model_type="llama", model_class=None, texts=TEXTS):
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(f"{HERE}/{tokenizer}.json", f"{folder}/tokenizer.json")
        model = {"model_type": model_type}
        if model_class:
            model["tokenizer_class"] = model_class
        for name, contents in (("config.json", model), ("tokenizer_config.json", config)):
            with open(f"{folder}/{name}", "w") as file:
                json.dump(contents, file)
        loaded = AutoTokenizer.from_pretrained(folder)
    cases = []
    for text in texts:
        ids = loaded(text)["input_ids"]
        cases.append({"text": text, "ids": ids, "decoded": loaded.decode(ids)})
    CASES.append({"tokenizer": tokenizer, "model_type": model_type, "model_class": model_class or "",
                  "config": config, "class": type(loaded).__name__, "texts": cases})


def stated(name, add_prefix_space, **others):
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if name and "Llama" not in name:
        tokens = {"eos_token": "<|endoftext|>"}
    return {**({"tokenizer_class": name} if name else {}), "add_prefix_space": add_prefix_space, **tokens,
            **others}


for style in ("llama2", "mistral"):
    for name in ("LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer"):
        add(style, stated(name, False))
    add(style, stated("LlamaTokenizer", False, legacy=True))
    add(style, stated("LlamaTokenizer", False), "mistral")
    add(style, {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False})
    add(style, stated("", False), model_class="LlamaTokenizer")
    add(style, {"add_prefix_space": False})
add("mistral", stated("LlamaTokenizer", True))
add("llama2", stated("LlamaTokenizer", True))
add("llama2", stated("LlamaTokenizer", True, legacy=True))
add("metaspace", stated("LlamaTokenizer", False), texts=TEXTS[:2])
add("llama3", {"tokenizer_class": "LlamaTokenizerFast", "add_prefix_space": True})
for style, name in (("qwen2", "Qwen2Tokenizer"), ("gpt2", "GPT2Tokenizer")):
    for value in (True, False):
        for spelling in (name, name + "Fast"):
            add(style, stated(spelling, value))
        add(style, {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": value})
        add(style, {"add_prefix_space": value})
    add(style, stated("Qwen2Tokenizer", True), "mistral")
add("qwen2", {"add_prefix_space": True}, "qwen2")
add("qwen2", stated("GPT2Tokenizer", True), "qwen2")
add("gpt2", stated("GPTNeoXTokenizer", True), texts=TEXTS[:2])
add("gpt2", stated("CodeGenTokenizer", True))

with open(f"{HERE}/prefix-space-oracle.json", "w") as file:
    lines = [json.dumps(case, ensure_ascii=False) for case in CASES]
    file.write("[" + ",\n".join(lines) + "]\n")
