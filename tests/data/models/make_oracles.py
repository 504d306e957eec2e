#!/usr/bin/env python3
"""Makes the small models in this folder and records what Hugging Face's `transformers` answers.

    pip install torch==2.15.0 transformers==5.24.0
    python3 make_oracles.py [--out DIR]

For each model NAME: NAME/, a checkpoint of random bfloat16 weights, and in it oracle.json, a list of
cases {"ids", "first_row", "logits"}: the logits, computed in float32 on the bfloat16 weights, of the
last positions of `ids`, from position `first_row` on.
"""

import argparse
import json
import os

import torch
from transformers import (LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM,
                          Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM,
                          SmolLM3Config, SmolLM3ForCausalLM)

COMMON = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
              num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
              bos_token_id=1, eos_token_id=2, pad_token_id=None, attn_implementation="eager")

MODELS = {
    # Biases of q, k and v; a tied head.
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(
        **COMMON, tie_word_embeddings=True, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})),
    # Scaled rotary frequencies: 16 pairs below, within and above the ramp; heads wider than
    # hidden_size / num_heads; all biases; an untied head.
    "llama3": lambda: LlamaForCausalLM(LlamaConfig(
        **COMMON, head_dim=32, attention_bias=True, mlp_bias=True, tie_word_embeddings=False,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0,
                         "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 256})),
    # Positions divided by a factor; one key head.
    "mistral-linear": lambda: MistralForCausalLM(MistralConfig(
        **{**COMMON, "num_key_value_heads": 1}, head_dim=10, sliding_window=None,
        tie_word_embeddings=False, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0})),
    # Norms of queries and keys; heads wider than hidden_size / num_heads; a tied head.
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(
        **COMMON, head_dim=20, tie_word_embeddings=True, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})),
    # The fourth of five layers has no rotary embedding.
    "smollm3": lambda: SmolLM3ForCausalLM(SmolLM3Config(
        **{**COMMON, "num_hidden_layers": 5}, tie_word_embeddings=True, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0})),
}

# Whose config.json is as transformers 4 wrote it.
OLD_SPELLING = {"qwen3"}


def spell_as_before(path):
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["rope_scaling"] = None
    config["torch_dtype"] = config.pop("dtype")
    del config["layer_types"]
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2, sort_keys=True)
        file.write("\n")

# (tokens, rows of logits recorded)
CASES = [(1, 1), (24, 24), (300, 12)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=os.path.dirname(os.path.abspath(__file__)))
    out = parser.parse_args().out
    for seed, (name, make) in enumerate(MODELS.items()):
        generator = torch.Generator().manual_seed(seed)
        model = make().eval()
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                parameter.normal_(generator=generator)
                if parameter_name.endswith("norm.weight"):
                    parameter.mul_(0.2).add_(1)
                elif parameter_name.endswith(".bias"):
                    parameter.mul_(0.5)
                elif "embed_tokens" not in parameter_name and "lm_head" not in parameter_name:
                    parameter.mul_(1.3 * parameter.shape[1] ** -0.5)
        model = model.to(torch.bfloat16)
        folder = os.path.join(out, name)
        model.save_pretrained(folder)
        if name in OLD_SPELLING:
            spell_as_before(os.path.join(folder, "config.json"))
        # bfloat16 weights, float32 arithmetic; buffers (rotary frequencies) anew in float32.
        model = type(model).from_pretrained(folder, dtype=torch.float32,
                                            attn_implementation="eager").eval()
        cases = []
        for num_tokens, num_rows in CASES:
            ids = torch.randint(0, model.config.vocab_size, (1, num_tokens), generator=generator)
            with torch.no_grad():
                logits = model(ids).logits[0, num_tokens - num_rows:]
            cases.append({
                "ids": ids[0].tolist(),
                "first_row": num_tokens - num_rows,
                "logits": [[round(value, 5) for value in row] for row in logits.tolist()],
            })
        with open(os.path.join(folder, "oracle.json"), "w", encoding="utf-8") as file:
            file.write("[" + ",\n".join(json.dumps(case) for case in cases) + "]\n")


if __name__ == "__main__":
    main()
