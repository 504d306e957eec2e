#!/usr/bin/env python3
"""Makes the tokenizers and recorded answers in this folder with Hugging Face's `tokenizers`.

    pip install tokenizers==0.23.3
    python3 make_oracles.py [--out DIR] [--cases N] [--seed N]

For each style NAME: NAME.json, a tokenizer trained on the text below, and NAME-oracle.json, a list
of {"text", "add", "parse", "ids", "decoded", "decoded_skip"}. `add` is add_special_tokens, `parse` is
false where special tokens in the text are plain text; cases without "text" are decoded only.
components-oracle.json holds {"tokenizer", "cases"} pairs on one small model: components that no style
has. What a tokenizer there lacks of "vocab", "merges" and "added_tokens" stands at the top.
classics-oracle.json and llama2-oracle.json have been made on trained models likewise.
"""

import argparse
import itertools
import json
import os
import random
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

GPT2_LIKE = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
             r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3_REGEX = GPT2_LIKE % "{1,3}"
QWEN2_REGEX = GPT2_LIKE % ""

WORDS = """the of and a to in is it you that he was for on are with as I his they be at one have this
from or had by hot but some what there we can out other were all your when up use word how said an
each she which do their time if will way about many then them would write like so these her long make
thing see him two has look more day could go come did my sound no most number who over know water than
call first people may down side been now find any new work part take get place made live where after
back little only round man year came show every good me give our under name very through just form
lighthouse keeper climbed the stairs slowly counting each step while rain drummed against glass
don't can't I'm we've they'll he'd it's John's WHAT'S HELLO World Tokenizer naïve café über señor
Straße Ωμέγα привет мир слово язык 你好 世界 语言 模型 日本語 ひらがな カタカナ 한국어 العربية שלום हिन्दी""".split()

WHITE_SPACE = [" ", "  ", "   ", "\t", "\n", "\r\n", "\r", "\n\n", " \n", "\n ", "\x0b", "\x0c", "\x85",
               "\xa0", "\u1680", "\u180e", "\u2000", "\u2003", "\u2009", "\u200a", "\u200b", "\u2028",
               "\u2029", "\u202f", "\u205f", "\u2060", "\u3000", "\ufeff", "\x1c", "\x1f"]
ODDITIES = ["e\u0301", "\u0301", "a\u0323\u0301", "a\u0301\u0323", "\u0344", "\u0f73", "\u1e9b\u0323",
            "ﬁ", "①", "½", "²", "٣", "Ⅷ", "\u212b", "Å", "가", "\u1100\u1161\u11a8", "👩‍👩‍👧‍👦", "🙂", "🇩🇪",
            "👍🏽", "❤️", "\x00", "\x01", "\x7f", "\ufffd", "\ufffe", "\u200d", "\u00ad", "'S", "'ſ", "'LL",
            "'Ve", "'d", "\u2019s", "K", "İ", "ß", "ẞ", "Σς", "ǅ", "ﷺ", "▁", "▁▁", "Ġ", "Ċ", "<0x41>",
            "<0x0A>", "<unk>", "_", "__", "-", "--", "...", "!?", "(", ")", "[", "{}", "\\", "/", "#",
            "$", "€", "1", "12", "123", "1234567", "3.14", "1,000", "१२३", "٠١", "५", "x", "X", "\U00020000",
            "\U0001f600", "\U000e0001", "\U0010ffff", "s", "t", "the", " a", "中文", "ｶﾞ", "\uff9e", "\u3099",
            "\U0002ebf0", "\U00010d40"]  # a letter of Unicode 15.1, a digit of 16.0


def words(rng, count):
    return " ".join(rng.choice(WORDS) for _ in range(count))


def training_text():
    rng = random.Random(7)
    lines = [words(rng, rng.randint(4, 14)) + rng.choice([".", "!", "?", ",", ";"]) for _ in range(1500)]
    lines += ["  " * rng.randint(0, 4) + "x = %d + %d;" % (rng.randint(0, 9999), rng.randint(0, 99))
              for _ in range(200)]
    return lines


def random_character(rng):
    while True:
        limit = rng.choice([0x80, 0x250, 0x800, 0x3000, 0x10000, 0x110000])
        character = chr(rng.randrange(limit))
        # Surrogates are no text. Characters newer than this Python's Unicode are left out: their
        # properties depend on the version that a library was built with.
        if unicodedata.category(character) not in ("Cs", "Cn"):
            return character


def random_text(rng, specials):
    parts = []
    for _ in range(rng.choice([1, 2, 3, 5, 8, 13])):
        kind = rng.random()
        if kind < 0.3:
            parts.append(rng.choice(WORDS))
        elif kind < 0.5:
            parts.append(rng.choice(WHITE_SPACE))
        elif kind < 0.7:
            parts.append(rng.choice(ODDITIES))
        elif kind < 0.8:
            parts.append(random_character(rng))
        elif kind < 0.9 and specials:
            special = rng.choice(specials)
            parts.append(special if rng.random() < 0.7 else special[:-1])
        else:
            parts.append(rng.choice(ODDITIES + WHITE_SPACE) * rng.randint(2, 6))
    return "".join(parts)


def cases_of(tokenizer, rng, count, decode_only=None):
    specials = sorted(t.content for t in tokenizer.get_added_tokens_decoder().values()
                      if not t.content.startswith("<0x"))
    cases = []
    for i in range(count):
        text = random_text(rng, specials) if i else ""
        add, parse = rng.random() < 0.7, rng.random() < 0.8
        tokenizer.encode_special_tokens = not parse
        ids = tokenizer.encode(text, add_special_tokens=add).ids
        cases.append({"text": text, "add": add, "parse": parse, "ids": ids})
    known = sorted(tokenizer.get_vocab().values())
    byte_like = sorted(v for k, v in tokenizer.get_vocab().items() if k.startswith("<0x") or len(k) == 1)
    for i in range(count if decode_only is None else decode_only):
        pool = rng.choice([known, byte_like or known])
        ids = [rng.choice(pool) for _ in range(rng.randint(0, 12))]
        if rng.random() < 0.1:
            ids.insert(rng.randint(0, len(ids)), known[-1] + rng.randint(1, 50))
        cases.append({"ids": ids})
    # Version 0.23 decodes such a token to its normalized spelling, and does not skip it when it is
    # special; earlier ones, and this project, go by the spelling in the file.
    respelled = {id for id, t in tokenizer.get_added_tokens_decoder().items()
                 if tokenizer.id_to_token(id) != t.content}
    for case in cases:
        if not respelled.isdisjoint(case["ids"]):
            continue
        try:
            case["decoded"] = tokenizer.decode(case["ids"], skip_special_tokens=False)
            skipped = tokenizer.decode(case["ids"], skip_special_tokens=True)
        except BaseException as error:  # its Strip decoder panics on tokens shorter than `stop`
            assert "PanicException" in type(error).__name__
            case.pop("decoded", None)
            continue
        if skipped != case["decoded"]:
            case["decoded_skip"] = skipped
    return [case for case in cases if "text" in case or "decoded" in case]


def train(tokenizer, vocab_size, initial_alphabet, special_tokens):
    tokenizer.train_from_iterator(training_text(), trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=initial_alphabet, special_tokens=special_tokens,
        show_progress=False))


def byte_level(pre_tokenizer, normalizer=None, vocab_size=560):
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    train(tokenizer, vocab_size, sorted(pre_tokenizers.ByteLevel.alphabet()), [])
    return tokenizer


def gpt2():
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def llama3():
    split = pre_tokenizers.Split(Regex(LLAMA3_REGEX), "isolated", invert=False)
    tokenizer = byte_level(pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    names += ["<|reserved_special_token_%d|>" % i for i in range(12)]
    tokenizer.add_special_tokens(names)
    bos = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=True),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A $B",
                                      special_tokens=[("<|begin_of_text|>", bos)])])
    document = json.loads(tokenizer.to_str())
    model = document["model"]
    model["ignore_merges"] = True
    # A token that no merges lead to: only ignore_merges finds it.
    model["vocab"] = dict(model["vocab"])
    whole = {"Ġlighthousekeeper", "lighthouse"} - set(model["vocab"])
    shift = len(whole)
    for token in document["added_tokens"]:
        token["id"] += shift
    for i, token in enumerate(sorted(whole)):
        model["vocab"][token] = len(model["vocab"])
    text = json.dumps(document).replace('"ids": [%d]' % bos, '"ids": [%d]' % (bos + shift))
    return Tokenizer.from_str(text)


def qwen2():
    split = pre_tokenizers.Split(Regex(QWEN2_REGEX), "isolated", invert=False)
    tokenizer = byte_level(pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)]),
        normalizers.NFC())
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("<tool_call>", "</tool_call>", "café")])
    return tokenizer


BYTES = ["<0x%02X>" % b for b in range(256)]


def sentencepiece(pre_tokenizer, normalizer, decoder, byte_fallback=True, flags={}):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=byte_fallback))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder
    alphabet = sorted("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,;!?'▁=+0123456789é中")
    tokenizer_trainer = trainers.BpeTrainer(
        vocab_size=620 if byte_fallback else 320, initial_alphabet=alphabet, limit_alphabet=len(alphabet),
        special_tokens=["<unk>", "<s>", "</s>"] + (BYTES if byte_fallback else []), show_progress=False)
    # Trained on pieces that end at a word, as SentencePiece does; the file splits otherwise.
    wanted = tokenizer.pre_tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.normalizer = None
    tokenizer.train_from_iterator(training_text(), tokenizer_trainer)
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [t for t in document["added_tokens"] if not t["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(document))
    tokenizer.normalizer = normalizer
    if wanted is None:
        document = json.loads(tokenizer.to_str())
        document["pre_tokenizer"] = None
        tokenizer = Tokenizer.from_str(json.dumps(document))
    else:
        tokenizer.pre_tokenizer = wanted
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    return tokenizer


def fallback_decoder():
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                              decoders.Strip(content=" ", left=1, right=0)])


def mistral():
    tokenizer = sentencepiece(pre_tokenizers.Metaspace(prepend_scheme="first", split=False), None,
                              fallback_decoder())
    tokenizer.add_special_tokens(["[INST]", "[/INST]"])
    return tokenizer


def llama2_normalized():
    return sentencepiece(None, normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
                         fallback_decoder())


def metaspace():
    tokenizer = sentencepiece(pre_tokenizers.Metaspace(prepend_scheme="always", split=True), None,
                              decoders.Metaspace(), byte_fallback=False)
    tokenizer.add_tokens([AddedToken("New York", normalized=True), AddedToken("<x>", single_word=True)])
    return tokenizer


STYLES = {"gpt2": gpt2, "llama3": llama3, "qwen2": qwen2, "mistral": mistral,
          "llama2-normalized": llama2_normalized, "metaspace": metaspace}

# The components' model: characters, bytes and a few merges.
SMALL_VOCAB = (["<unk>"] + BYTES + list("abcdefghijklmnopqrstuvwxyzABCX0123456789 .,'!▁_-é\n\t") +
               ["ab", "abc", "the", "th", "▁t", "▁the", "  ", "12", "XX", "\n\n"])
SMALL_MERGES = [["a", "b"], ["t", "h"], ["th", "e"], ["▁", "t"], ["▁", "the"], ["ab", "c"], [" ", " "],
                ["1", "2"], ["X", "X"], ["\n", "\n"]]


def small_document(**parts):
    document = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                "pre_tokenizer": None, "post_processor": None, "decoder": None,
                "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": False, "byte_fallback": False,
                          "vocab": {token: i for i, token in enumerate(SMALL_VOCAB)}, "merges": SMALL_MERGES}}
    document["model"].update(parts.pop("model", {}))
    document.update(parts)
    return document


def flagged_tokens():
    tokens = []
    for i, flags in enumerate(itertools.product([False, True], repeat=5)):
        single_word, lstrip, rstrip, normalized, special = flags
        content = "<" + "".join(n for n, f in zip("WLRNS", flags) if f) + ">"
        tokens.append({"id": len(SMALL_VOCAB) + i, "content": content, "single_word": single_word,
                       "lstrip": lstrip, "rstrip": rstrip, "normalized": normalized, "special": special})
    return tokens


def component_documents():
    def split(pattern, behavior, invert):
        return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}

    behaviors = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
    for behavior, invert in itertools.product(behaviors, [False, True]):
        yield small_document(pre_tokenizer=split({"Regex": r"\s|\d+"}, behavior, invert))
        yield small_document(pre_tokenizer=split({"String": "a"}, behavior, invert))
    for pattern in [r"\w+|[^\w\s]+", r"[\w']+", r"\bthe\b|\B.", r"^.|.$", r"x*", r"\h{2}", r"\p{N}{1,2}+",
                    r"a{,2}", r"(?<=a)b|\u00e9", r"[^\S\n]+|\S+?(?=\s)", r"[[:punct:]]+", r"(?i)THE|\p{Lu}", r"[\p{L}\p{M}]+|\p{P}+", r"\R|\D", r"(\w)\1", r"\A\s+|\s+\z"]:
        yield small_document(pre_tokenizer=split({"Regex": pattern}, "Isolated", False))
    for scheme, splits in itertools.product(["always", "first", "never"], [False, True]):
        metaspace_json = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": splits}
        yield small_document(pre_tokenizer=metaspace_json, decoder=metaspace_json, added_tokens=flagged_tokens())
    tokens = flagged_tokens()
    yield small_document(added_tokens=tokens)
    yield small_document(added_tokens=tokens, normalizer={"type": "Prepend", "prepend": "▁"})
    yield small_document(added_tokens=tokens, normalizer={"type": "Lowercase"},
                         pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"})
    strip = {"type": "Strip", "strip_left": True, "strip_right": True}
    yield small_document(added_tokens=tokens, normalizer=strip,
                         pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"})
    for name in ["NFC", "NFD", "NFKC", "NFKD"]:
        yield small_document(added_tokens=tokens, normalizer={"type": "Sequence", "normalizers": [
            {"type": name}, {"type": "Lowercase"}]}, model={"byte_fallback": True})
    yield small_document(normalizer={"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"Regex": r"\s+|'+"}, "content": " "},
        {"type": "Replace", "pattern": {"String": "the"}, "content": "abc"}, strip]})
    for digits in [False, True]:
        yield small_document(pre_tokenizer={"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"}, {"type": "Digits", "individual_digits": digits}]})
    for fuse, fallback in itertools.product([False, True], repeat=2):
        partial = {t: i for i, t in enumerate(t for t in SMALL_VOCAB if t not in ("<0xC3>", "<0xE2>"))}
        yield small_document(model={"fuse_unk": fuse, "byte_fallback": fallback, "vocab": partial})
    yield small_document(model={"unk_token": None})
    yield small_document(model={"ignore_merges": True, "merges": ["a b", "1 2"]},
                         pre_tokenizer={"type": "WhitespaceSplit"})
    yield small_document(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
                         decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
                         added_tokens=tokens)
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip_decoder = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    strip_end = {"type": "Strip", "content": " ", "start": 0, "stop": 2}
    fallback, fuse = {"type": "ByteFallback"}, {"type": "Fuse"}
    for chain in [[fallback], [fuse], [replace, fuse, strip_decoder], [fuse, replace, strip_end],
                  [fallback, fuse, {"type": "Replace", "pattern": {"String": "ab"}, "content": "X"}, strip_decoder],
                  [fallback, strip_decoder, replace], [strip_end, fallback, fuse],
                  [{"type": "Replace", "pattern": {"Regex": "[abc]"}, "content": ""}, fallback],
                  [fuse, {"type": "Replace", "pattern": {"Regex": "a+b|$"}, "content": "-"}],
                  [fuse, fallback], [fuse, {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}],
                  [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}, strip_end, replace],
                  [{"type": "Replace", "pattern": {"String": "aab"}, "content": "aa"}, fuse,
                   {"type": "Replace", "pattern": {"String": "aab"}, "content": "_"}]]:
        yield small_document(decoder={"type": "Sequence", "decoders": chain}, model={"byte_fallback": True},
                             added_tokens=tokens)


def write(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=True, separators=(",", ":"))
        file.write("\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=os.path.dirname(os.path.abspath(__file__)))
    parser.add_argument("--cases", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    for name, make in STYLES.items():
        tokenizer = make()
        write(arguments.out, name + ".json", json.loads(tokenizer.to_str()))
        rng = random.Random("%s %d" % (name, arguments.seed))
        write(arguments.out, name + "-oracle.json", cases_of(tokenizer, rng, arguments.cases))
    components = []
    shared_parts = {"vocab": {t: i for i, t in enumerate(SMALL_VOCAB)}, "merges": SMALL_MERGES,
                    "added_tokens": flagged_tokens()}
    for i, document in enumerate(component_documents()):
        rng = random.Random("component %d %d" % (i, arguments.seed))
        tokenizer = Tokenizer.from_str(json.dumps(document))
        count = max(8, arguments.cases // 10)
        cases = cases_of(tokenizer, rng, count, decode_only=count if document["decoder"] else 2)
        # What most of them share is written once.
        for shared in ("vocab", "merges"):
            if document["model"][shared] == shared_parts[shared]:
                del document["model"][shared]
        if document["added_tokens"] == shared_parts["added_tokens"]:
            del document["added_tokens"]
        components.append({"tokenizer": document, "cases": cases})
    write(arguments.out, "components-oracle.json", {**shared_parts, "components": components})


if __name__ == "__main__":
    main()
