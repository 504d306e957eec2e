#!/usr/bin/env python3
"""Makes folder-tokens-oracle.json: the tokens that transformers has where the files beside
tokenizer.json say something of tokens.

    pip install transformers==5.24.0 tokenizers==0.23.3
    python3 make_folder_tokens_oracle.py

A list of {"tokenizer", "model_type", "files", "class", "named", "texts"}: NAME.json as
tokenizer.json, model_type of config.json, the other files by name, the class that AutoTokenizer
chose, the variables of its chat templates, and {"text", "ids"}.
"""

import json
import os
import shutil
import tempfile

from transformers import AutoTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
TEXTS = ["a <X> b<Y> <Z>c", "<|eot_id|> & <|endoftext|> <|padding|>", "<X>\n<FILL_ME> <s> hello"]
FAST = "PreTrainedTokenizerFast"
CASES = []


def token(content, **changes):
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": False,
            "single_word": False, "special": True, **changes}


def add(tokenizer, config, model_type="llama", **files):
    if config is not None:
        files["tokenizer_config"] = config
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(f"{HERE}/{tokenizer}.json", f"{folder}/tokenizer.json")
        for name, contents in (("config", {"model_type": model_type}), *files.items()):
            with open(f"{folder}/{name}.json", "w") as file:
                json.dump(contents, file, sort_keys=True)
        loaded = AutoTokenizer.from_pretrained(folder)
    # CodeLlamaTokenizer puts a text that spells its fill_token into another order: docs/checkpoints.md.
    fill = loaded.special_tokens_map.get("fill_token") if type(loaded).__name__ == "CodeLlamaTokenizer" else None
    texts = [text for text in TEXTS if fill is None or fill not in text]
    CASES.append({"tokenizer": tokenizer, "model_type": model_type, "files": files,
                  "class": type(loaded).__name__, "named": loaded.special_tokens_map,
                  "texts": [{"text": text, "ids": loaded(text)["input_ids"]} for text in texts]})


def stated(name, **keys):
    return {"tokenizer_class": name, **keys}


def decoder(*tokens):
    return {str(id): content for id, content in tokens}


def fast(**keys):
    add("llama3", stated(FAST, **keys))


# New tokens and changed ones.
fast(added_tokens_decoder=decoder((579, token("<X>"))))
fast(added_tokens_decoder=decoder((200000, token("<X>")), (100000, token("<Y>"))))
fast(added_tokens_decoder=decoder((579, token("<X>", special=False, normalized=True))))
fast(added_tokens_decoder=decoder((566, token("<|eot_id|>", lstrip=True, rstrip=True))))
fast(added_tokens_decoder=decoder((3, token("<|eot_id|>", single_word=True))))
fast(added_tokens_decoder=decoder((5, token("&"))))
fast(added_tokens_decoder=decoder((579, token("<X>", special=False))), eos_token="<X>")
# Named tokens.
fast(eos_token="&")
fast(eos_token="<X>", pad_token="<Y>", bos_token="<Z>")
fast(eos_token={"__type": "AddedToken", **token("<X>", lstrip=True, special=False, normalized=True)})
fast(eos_token=None, image_token="<X>", add_bos_token=True)
fast(model_specific_special_tokens={"x_token": "<X>"})
# Others.
fast(extra_special_tokens=["<X>", "<Y>", "&"])
fast(extra_special_tokens=[{"__type": "AddedToken", **token("<X>", lstrip=True)}])
fast(extra_special_tokens={"x_token": "<X>", "image": "<|eot_id|>"})
fast(additional_special_tokens=["<X>"], extra_special_tokens=["<Y>"])
fast(additional_special_tokens=["<X>"], extra_special_tokens=[])
fast(additional_special_tokens=["<X>", "<Z>"])
fast(split_special_tokens=True)
fast(split_special_tokens=True, additional_special_tokens=["<X>"])
# special_tokens_map.json.
X = {key: value for key, value in token("<X>", lstrip=True, normalized=True).items() if key != "special"}
add("llama3", stated(FAST), special_tokens_map={"eos_token": X, "additional_special_tokens": ["<Y>"]})
add("llama3", stated(FAST, extra_special_tokens=["<X>"]), special_tokens_map={"extra_special_tokens": ["<Y>"]})
add("llama3", stated(FAST, additional_special_tokens=["<X>"]),
    special_tokens_map={"additional_special_tokens": ["<Y>"]})
add("llama3", stated(FAST), special_tokens_map={"image_token": "<X>"})
add("llama3", stated(FAST, added_tokens_decoder={}), special_tokens_map={"eos_token": "<X>"})
add("llama3", stated(FAST, eos_token="<X>"), special_tokens_map={"eos_token": None})
# added_tokens.json.
add("llama3", stated(FAST), added_tokens={"<X>": 580, "<Y>": 579})
add("llama3", stated(FAST, eos_token="<X>"), added_tokens={"<X>": 579})
add("llama3", stated(FAST), added_tokens={"<|eot_id|>": 566})
add("llama3", stated(FAST, added_tokens_decoder={}), added_tokens={"<X>": 579})
add("llama3", None, added_tokens={"<X>": 579})
# Classes with tokens of their own.
for name, tokenizer in (("LlamaTokenizer", "mistral"), ("LlamaTokenizerFast", "mistral"),
                        ("CodeLlamaTokenizer", "mistral"), ("LlamaTokenizer", "llama3")):
    add(tokenizer, stated(name))
    add(tokenizer, stated(name, additional_special_tokens=["<X>"]))
add("mistral", stated("LlamaTokenizer", unk_token=None, pad_token="<unk>"))
add("mistral", stated("LlamaTokenizer"), "mistral")
add("mistral", stated("CodeLlamaTokenizer", fill_token=None, prefix_token="<X>"))
add("qwen2", stated("Qwen2Tokenizer"), "qwen2")
add("qwen2", stated("Qwen2Tokenizer", bos_token="<X>", additional_special_tokens=["<|im_start|>", "<Y>"]), "qwen2")
add("qwen2", stated("Qwen2TokenizerFast", pad_token="<X>"))
add("qwen2", stated(FAST), "qwen2")
for name in ("GPT2Tokenizer", "GPT2TokenizerFast", "GPTNeoXTokenizer", "GPTNeoXTokenizerFast", "CodeGenTokenizer"):
    add("gpt2", stated(name))
    add("gpt2", stated(name, pad_token="<X>"))

with open(f"{HERE}/folder-tokens-oracle.json", "w") as file:
    file.write("[" + ",\n".join(json.dumps(case, ensure_ascii=False) for case in CASES) + "]\n")
