#!/usr/bin/env bash
# transformers 5.24.0, tokenizers of GGUF files (AutoTokenizer.from_pretrained(..., gguf_file=...), whose
# conversion is called here directly: it needs no torch). tokenizers 0.23.3.
#
# Expected: the ids that llama.cpp gives, and the model's own tokenizer. Seen, without a warning:
#  1. tokenizer.ggml.pre "smollm" (also starcoder, refact): digits are not split. "123" is one token where
#     the vocabulary has one; llama.cpp and SmolLM's own tokenizer give three.
#  2. "llama-bpe": a piece of text that is a token of the vocabulary, but that no merges lead to, is cut:
#     "abc" is "ab", "c". llama.cpp and Llama 3's own tokenizer (ignore_merges) give "abc".
#  3. Control tokens with characters beyond the byte alphabet, as DeepSeek's <｜begin▁of▁sentence｜>, are
#     respelled in bytes: the token that the file calls BOS is not in the vocabulary any more, and adding
#     it, as the tokenizer's class does, gives it an id beyond the embedding.
# Exits with 0 when all is as seen here, else with 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install transformers==5.24.0 tokenizers==0.23.3 numpy==2.4.6
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PYTHON'
import sys

from tokenizers.pre_tokenizers import ByteLevel
from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer

BOS = "<｜begin▁of▁sentence｜>"
tokens = [BOS] + sorted(ByteLevel.alphabet()) + ["12", "123", "ab", "abc"]
types = [3] + [1] * (len(tokens) - 1)


def convert(pre):
    tokenizer, _ = convert_gguf_tokenizer("llama", {
        "tokenizer_type": "gpt2", "pre_tokenizer_type": pre, "tokens": tokens, "token_type": types,
        "merges": ["1 2", "12 3", "a b"], "bos_token_id": 0})
    return tokenizer


seen = [convert("smollm").encode("123").tokens, convert("llama-bpe").encode("abc").tokens,
        convert("deepseek-llm").token_to_id(BOS)]
print(*seen)
sys.exit(seen != [["123"], ["ab", "c"], None])
PYTHON
