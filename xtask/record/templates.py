"""What transformers makes of chat templates, tokenizers and special ids.

Files of three kinds (`kind` in each): `chat` renders conversations through `apply_chat_template`,
`tokenizer` encodes and decodes with small tokenizers made here, `special_ids` asks which ids
`generate()` would use. The chat templates lie in `chat_templates/`; they are written for this project
in the shapes of published ones and use the same Jinja constructs.
"""

import collections
import datetime
import itertools
import json
import pathlib
import random
import tempfile
from unittest import mock

import tokenizers
from _fixture import made_by, write_json
from jinja2.exceptions import TemplateError
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

HERE = pathlib.Path(__file__).resolve().parent
MADE_BY = made_by("transformers", "tokenizers", "jinja2")

# The local time at which templates that print the date are rendered.
NOW = datetime.datetime(2024, 7, 6, 9, 5, 3)


def record(out: pathlib.Path) -> None:
    """Writes all files of the area."""
    for name, family in FAMILIES.items():
        write_json(out / f"{name}.json", chat_fixture(name, **family))
    write_json(out / "constructs.json", constructs_fixture())
    write_json(out / "continued.json", continued_fixture())
    for name, files in tokenizer_folders().items():
        write_json(out / f"tokenizer-{name}.json", tokenizer_fixture(name, files))
    write_json(out / "special-ids.json", special_ids_fixture())


# Chat templates


def user(content, **more):
    return {"role": "user", "content": content, **more}


def system(content):
    return {"role": "system", "content": content}


def assistant(content=None, **more):
    return {"role": "assistant", **({} if content is None else {"content": content}), **more}


def call(name, arguments, number=1):
    return {"type": "function", "id": f"call0000{number}", "function": {"name": name, "arguments": arguments}}


def tool(content, number=1):
    return {"role": "tool", "tool_call_id": f"call0000{number}", "content": content}


CONVERSATIONS = {
    "one question": [user("Where is the harbour?")],
    "with system": [system("You are a pirate.  "), user("  Who goes there? \n"), assistant(" Yarr, ’tis me! "), user("Hm.")],
    "ends with an answer": [user("2 + 2?"), assistant("4")],
    "many turns": [user("a"), assistant("b"), user("c"), assistant("d\n\ne"), user("f")],
    "not ascii": [system("Réponds en français."), user("日本語で “港” は？ 🏴‍☠️ <b>&amp;</b> 'x' \"y\" \\ \t|")],
    "empty content": [system(""), user(""), assistant(""), user("x")],
    "thoughts in the text": [user("Tide?"), assistant("<think>\nHigh or low.\n</think>\n\nHigh."), user("Sure?"), assistant("<think>\nAgain.\n</think>\n\nYes.")],
    "thoughts in a field": [user("Tide?"), assistant("High.", reasoning_content="High or low."), user("Sure?"), assistant("Yes.", thinking="Again.")],
    "null fields": [user("Tide?", name=None), assistant("High.", tool_calls=None, reasoning_content=None)],
    "two users": [user("a"), user("b")],
    "system late": [user("a"), system("Be brief."), user("b")],
    "other role": [user("a"), {"role": "critic", "content": "b"}],
    "no content": [user("a"), {"role": "assistant"}],
    "parts": [system([{"type": "text", "text": "Look."}]), user([{"type": "image"}, {"type": "text", "text": " What is this? "}])],
    "a call": [
        system("Use tools."),
        user("Weather in Brest?"),
        assistant(tool_calls=[call("weather", {"city": "Brest", "days": 2, "units": "°C", "exact": True, "near": None})]),
        tool('{"sky": "gris", "wind": 7.5}'),
        assistant("Grey."),
        user("Thanks!"),
    ],
    "a call to answer": [
        user("Weather in Brest?"),
        assistant("I look.", tool_calls=[call("weather", {"city": "Brest"})]),
        tool({"sky": "grey"}),
    ],
    "two calls": [
        user("Weather in Brest & Nantes?"),
        assistant("", tool_calls=[call("weather", {"city": "Brest"}), call("weather", {"city": "Nantes <sud>"}, 2)], reasoning_content="Two calls."),
        tool("grey"),
        tool("blue", 2),
    ],
    "arguments as text": [user("Weather?"), assistant(tool_calls=[call("weather", '{"city": "Brest"}')]), tool("grey")],
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather, l’été too.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "The city's name"},
                    "days": {"type": "integer", "description": "How many", "default": 1, "minimum": 0.5, "maximum": 1e-7},
                    "units": {"type": "string", "enum": ["°C", "°F"], "description": "Units", "default": "°C"},
                    "items": {"type": "array", "items": {"type": "string"}, "description": "What to tell"},
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "log",
            "description": "Writes <b>&</b> 'logs'.",
            "parameters": {
                "type": "object",
                "properties": {
                    "position": {"type": "object", "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}}, "required": ["lat"], "additionalProperties": {"type": "number"}, "description": "Where"},
                    "stops": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}, "description": "Stops"},
                    "note": {"type": ["string", "integer"], "description": "A note"},
                    "ok": {"type": "boolean", "description": "All well?"},
                },
                "required": [],
            },
        },
    },
]

DOCUMENTS = [{"title": "Ports", "text": "Brest is a port."}, {"title": "Cités", "text": "Nantes n’est pas au bord de la mer.", "year": 2020}]

TALK = ["one question", "with system", "ends with an answer", "many turns", "not ascii", "empty content", "two users", "no content"]
CALLS = ["a call", "a call to answer", "two calls", "arguments as text"]
THOUGHTS = ["thoughts in the text", "thoughts in a field", "null fields"]

CHATML_TOKENS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
LLAMA_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
LLAMA3_TOKENS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
GEMMA_TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "boi_token": "<start_of_image>"}
DEEPSEEK_TOKENS = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
COMMAND_TOKENS = {"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>"}

TOOLED = [{}, {"tools": True}]
THINKING = [*TOOLED, {"extra": {"enable_thinking": False}}, {"tools": True, "extra": {"enable_thinking": True}}]

# Each family: its special tokens, the conversations, the options they are rendered with, and the
# names of its templates where it has several.
FAMILIES = {
    "chatml": dict(tokens=CHATML_TOKENS, talk=[*TALK, "system late", "other role"]),
    "qwen2.5": dict(tokens=CHATML_TOKENS, talk=TALK + CALLS, options=TOOLED),
    "qwen3": dict(tokens=CHATML_TOKENS, talk=[*TALK, *CALLS, *THOUGHTS, "parts"], options=THINKING),
    "llama2": dict(tokens=LLAMA_TOKENS, talk=[*TALK, "system late"]),
    "llama3.1": dict(
        tokens=LLAMA3_TOKENS,
        talk=TALK + CALLS,
        options=[
            *TOOLED,
            {"tools": True, "extra": {"date_string": "1 May 1900", "tools_in_user_message": False}},
            {"extra": {"builtin_tools": ["code_interpreter", "weather"]}},
        ],
    ),
    "gemma2": dict(tokens=GEMMA_TOKENS, talk=TALK),
    "gemma3": dict(tokens=GEMMA_TOKENS, talk=[*TALK, "parts"]),
    "mistral-v0.3": dict(tokens=LLAMA_TOKENS, talk=TALK + CALLS, options=TOOLED),
    "mistral-small": dict(tokens=LLAMA_TOKENS, talk=[*TALK, "parts", "other role"]),
    "phi3": dict(tokens={"bos_token": "<s>", "eos_token": "<|endoftext|>"}, talk=TALK),
    "phi4": dict(tokens={"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}, talk=TALK),
    "phi4-mini": dict(tokens={"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, talk=TALK, options=TOOLED),
    "zephyr": dict(tokens=LLAMA_TOKENS, talk=TALK),
    "tulu3": dict(tokens={"eos_token": "<|end_of_text|>"}, talk=TALK),
    "deepseek-r1": dict(tokens=DEEPSEEK_TOKENS, talk=TALK + CALLS + THOUGHTS),
    "command-r": dict(
        tokens=COMMAND_TOKENS,
        names=["default", "tool_use", "rag"],
        talk=["with system", "many turns", "not ascii", "two users", "a call", "two calls"],
        options=[
            *TOOLED,
            {"template": "rag", "documents": True},
            {"template": "rag", "documents": True, "tools": True, "extra": {"citation_mode": "accurate"}},
        ],
    ),
    "command-r7b": dict(
        tokens=COMMAND_TOKENS,
        talk=["with system", "many turns", "not ascii", "a call", "two calls"],
        options=[*TOOLED, {"documents": True, "tools": True}],
    ),
    "smollm3": dict(tokens=CHATML_TOKENS, talk=[*TALK, *THOUGHTS, "a call"], options=THINKING),
    "gpt-oss": dict(
        tokens={"bos_token": "<|startoftext|>", "eos_token": "<|return|>"},
        talk=TALK + CALLS + THOUGHTS,
        options=[*TOOLED, {"extra": {"reasoning_effort": "high", "model_identity": "You are a gull."}}],
    ),
    "granite3": dict(
        tokens={"bos_token": "<|end_of_text|>", "eos_token": "<|end_of_text|>"},
        talk=["one question", "with system", "ends with an answer", "not ascii", "no content"],
        options=[
            *TOOLED,
            {"documents": True},
            {"tools": True, "documents": True, "extra": {"controls": {"length": "short", "citations": True}}},
            {"extra": {"thinking": True}},
        ],
    ),
    "gemma4": dict(
        tokens=GEMMA_TOKENS,
        talk=["with system", "not ascii", "thoughts in the text", "parts", "a call", "a call to answer"],
        options=THINKING,
    ),
    "kimi-k3": dict(
        tokens={"bos_token": "[BOS]", "eos_token": "[EOS]"},
        talk=["with system", "not ascii", "thoughts in a field", "parts", "a call", "two calls", "arguments as text"],
        options=[*TOOLED, {"extra": {"thinking": False}}, {"extra": {"effort": "none"}}],
    ),
    "seed-oss": dict(
        tokens={"bos_token": "<seed:bos>", "eos_token": "<seed:eos>"},
        talk=["one question", "with system", "not ascii", "thoughts in a field", "a call", "two calls"],
        options=[*TOOLED, {"extra": {"thinking_budget": 0}}, {"extra": {"thinking_budget": 600}}],
    ),
    "glm4": dict(tokens={"eos_token": "<|endoftext|>"}, talk=[*TALK, *CALLS, *THOUGHTS, "parts"], options=THINKING),
}


def chat_fixture(family, tokens, talk, options=({},), names=None):
    """One family: every conversation with each of the options."""
    sources = {name: template_source(f"{family}.{name}" if names else family) for name in names or ["default"]}
    chat_template = [{"name": k, "template": v} for k, v in sources.items()] if names else sources["default"]
    config = {**tokens, "chat_template": chat_template}
    tokenizer = tokenizer_with(config)
    cases = []
    for number, (name, option) in enumerate(itertools.product(talk, options)):
        # Taking turns shows both sides of the flag without doubling the file.
        case = {"conversation": name, "add_generation_prompt": number % 3 != 1, **option}
        cases.append({**case, **rendered(tokenizer, case)})
    return {
        "made_by": MADE_BY,
        "kind": "chat",
        "tokenizer_config": config,
        "now": NOW.isoformat(),
        "conversations": {name: CONVERSATIONS[name] for name in talk},
        "tools": TOOLS,
        "documents": DOCUMENTS,
        "cases": cases,
    }


def tokenizer_with(config):
    """A tokenizer for its config only; its one token does not matter."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(models.WordLevel({"?": 0}, "?")), **config)


def template_source(name):
    return (HERE / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8").removesuffix("\n")


class Clock(datetime.datetime):
    """`datetime` whose present never moves."""

    @classmethod
    def now(cls, tz=None):
        return NOW


def rendered(tokenizer, case):
    """The text, or what happened instead: the template `refused`, or it `fails`."""
    try:
        with mock.patch.object(chat_template_utils, "datetime", Clock):
            text = tokenizer.apply_chat_template(
                {**CONVERSATIONS, **CONTINUED}[case["conversation"]],
                tools=TOOLS if case.get("tools") else None,
                documents=DOCUMENTS if case.get("documents") else None,
                chat_template=case.get("template"),
                add_generation_prompt=case["add_generation_prompt"],
                continue_final_message=case.get("continue_final_message", False),
                tokenize=False,
                **case.get("extra", {}),
            )
        return {"text": text}
    except TemplateError as error:
        # `raise_exception` raises the base class itself.
        return {"refused": str(error)} if type(error) is TemplateError else {"fails": f"{type(error).__name__}: {error}"}
    except Exception as error:
        return {"fails": f"{type(error).__name__}: {error}"}


VARIABLES = {
    "s": "Hello, World it's \"ok\" \n é 日本 \u200b<b>&",
    "w": "  pad\t\n",
    "e": "",
    "n": None,
    "i": 3,
    "f": 1.0,
    "g": 1e-7,
    "big": 1e22,
    "neg": -7,
    "t": True,
    "fa": False,
    "l": [1, "two", None, True, 3.5, {"a": [1, {"b": "c'd"}]}],
    "d": {"zeta": 1, "alpha": "x", "items": [1, 2], "get": "G", "nested": {"k": [True, None]}},
    "msgs": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1.5, "y": "é<"}}}]},
        {"role": "tool", "content": [{"type": "text", "text": "q"}]},
    ],
}


def constructs_fixture():
    """One-line templates for every corner in which minijinja and jinja2 could differ."""
    sources = template_source("constructs").split("\n§\n")
    config = {"chat_template": [{"name": str(at), "template": source} for at, source in enumerate(sources)]}
    tokenizer = tokenizer_with(config)
    cases = []
    for at in range(len(sources)):
        case = {"conversation": "one question", "add_generation_prompt": False, "template": str(at)}
        cases.append({**case, **rendered(tokenizer, {**case, "extra": VARIABLES})})
    return {
        "made_by": MADE_BY,
        "kind": "chat",
        "tokenizer_config": config,
        "now": NOW.isoformat(),
        "conversations": {"one question": CONVERSATIONS["one question"]},
        "extra": VARIABLES,
        "cases": cases,
    }


CONTINUED = {
    "an answer": [user("2 + 2?"), assistant("The answer is")],
    "spaces behind": [user("2 + 2?"), assistant("The answer is \n")],
    "thoughts": [user("Tide?"), assistant("", reasoning_content="High or")],
    "thoughts, then an answer": [user("Tide?"), assistant("Hi", thinking="High.")],
    "parts to continue": [user("Look."), assistant([{"type": "text", "text": "I"}, {"type": "text", "text": "see a"}])],
    "a user": [user("Tell me about")],
    "no content": [user("a"), assistant()],
}


def continued_fixture():
    """The last message continued, with templates that keep its spaces, trim them, or change it."""
    sources = {
        "keeps": "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}",
        "trims": "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>\n{% endfor %}",
        "changes": "{% for m in messages %}<{{ m.role }}>{{ m.content | upper }}</>{% endfor %}",
        "thinks": "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content %}[{{ m.reasoning_content }}]{% endif %}{{ m.content or '' }}</>{% endfor %}",
        "thinks otherwise": "{% for m in messages %}<{{ m.role }}>{% if m.thinking %}[{{ m.thinking }}]{% endif %}{{ m.content or '' }}</>{% endfor %}",
        "parts": "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }} {% endfor %}{% endif %}</>{% endfor %}",
        "drops": "{% for m in messages[:-1] %}{{ m.content }}{% endfor %}",
    }
    config = {"chat_template": [{"name": name, "template": source} for name, source in sources.items()]}
    tokenizer = tokenizer_with(config)
    cases = []
    for template, conversation, field in itertools.product(sources, CONTINUED, ["content", "reasoning_content", "thinking"]):
        if field != "content" and "thoughts" not in conversation:
            continue
        case = {"conversation": conversation, "add_generation_prompt": False, "template": template, "continue_final_message": field}
        cases.append({**case, **rendered(tokenizer, case)})
    return {
        "made_by": MADE_BY,
        "kind": "chat",
        "tokenizer_config": config,
        "now": NOW.isoformat(),
        "conversations": CONTINUED,
        "cases": cases,
    }


# Tokenizers

CORPUS = [
    "The ship's mate said: don't drop the anchor, we're near the harbour! Isn't it late? I've seen it, I'm sure.",
    "Pirates sail at dawn; the tide turns at 12:30, and 1,024 gulls follow the fleet. ",
    "Où est le port ? Là-bas, près de la jetée — très loin d'ici.",
    "日本の港は東京です。船が来ます。 안녕하세요 세계 🏴‍☠️🚢",
    "def sail(knots):\n    return knots * 1.852\n\n\nfor x in range(10):\n\tprint(x)\n",
    "hello hello world the the ship ship sails over the sea and the sea is deep and blue",
]

TEXTS = [
    "",
    " ",
    "The ship isn't late.",
    "  two  spaces and\ttabs\n\nnew lines ",
    "Où est 日本の港 ? 🏴‍☠️ 🚢🚢",
    "x = {'a': 1.5}  # don't , you 've seen ' it ' ?",
    "e\u0301t\u00e9 ﬁne Ⅳ",
    "▁ already there <0x41> Ġ",
    "<s> hello <|im_start|>user\nhello<|im_end|> </s> [MASK] world<extra>",
    "wörld ẞtraße Ça va NAÏVE",
]

SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def added(text, special=True, **flags):
    return AddedToken(text, special=special, normalized=False, **flags)


def pairs_learnt(words, count):
    """Byte-pair merges, the most frequent first. The library's own trainers break ties by chance."""
    words = collections.Counter(words)
    merges = []
    for _ in range(count):
        pairs = collections.Counter()
        for word, times in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += times
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        merged = collections.Counter()
        for word, times in words.items():
            merged[join_pair(word, best)] += times
        words = merged
    return merges


def join_pair(word, pair):
    out = []
    for symbol in word:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return tuple(out)


def frequent(pieces, count):
    """The most frequent pieces, ties by text."""
    times = collections.Counter(pieces)
    return sorted(times, key=lambda piece: (-times[piece], piece))[:count]


def numbered(tokens):
    return {token: at for at, token in enumerate(dict.fromkeys(tokens))}


def byte_level():
    """Qwen's shape: NFC, a split by pattern, bytes as characters, no tokens put around a text."""
    split = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    merges = pairs_learnt([tuple(word) for line in CORPUS for word, _ in split.pre_tokenize_str(line)], 140)
    vocab = numbered([*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)])
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([added("<|endoftext|>"), added("<|im_start|>"), added("<|im_end|>"), added("<tool_call>", special=False), added("日本", special=False)])
    # Ignored for BPE, as transformers warns.
    return tokenizer, {**CHATML_TOKENS, "clean_up_tokenization_spaces": True}


def byte_fallback(prefix_space):
    """Llama 2's shape with a space in front, Gemma's without."""
    words = [tuple("▁" + word) for line in CORPUS for word in line.split(" ")]
    letters = frequent(itertools.chain(*words), 60)
    merges = pairs_learnt([word for word in words if set(word) <= set(letters)], 140)
    vocab = numbered(["<unk>", "<s>", "</s>", *BYTES, *sorted(letters), *map("".join, merges)])
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix_space else replace
    chain = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(chain + [decoders.Strip(" ", 1, 0)] if prefix_space else chain)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return tokenizer, {**LLAMA_TOKENS, "add_bos_token": False, "add_eos_token": True}


def unigram():
    """T5's shape: SentencePiece unigram, an end token, English spaces cleaned up."""
    words = ["▁" + word for line in CORPUS for word in line.split()]
    parts = [word[i:j] for word in words for i in range(len(word)) for j in range(i + 2, min(len(word), i + 6) + 1)]
    pieces = [*sorted(set("".join(words))), *frequent(parts, 120)]
    scored = [(piece, -1.5 - 0.0625 * at) for at, piece in enumerate(reversed(pieces))]
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer = tokenizers.Tokenizer(models.Unigram([(token, 0.0) for token in special] + scored, unk_id=2))
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    return tokenizer, {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "extra_special_tokens": ["<extra>"], "clean_up_tokenization_spaces": True}


def bert_words():
    """The corpus as BERT splits it, in lower case."""
    normalizer, split = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    return [word for line in CORPUS for word, _ in split.pre_tokenize_str(normalizer.normalize_str(line))]


def wordpiece():
    """BERT's shape."""
    words = bert_words()
    letters = sorted(set("".join(words)))
    heads = frequent([word[:n] for word in words for n in range(2, len(word) + 1)], 60)
    tails = frequent([word[n:] for word in words for n in range(1, len(word))], 60)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = numbered([*special, *letters, *(f"##{letter}" for letter in letters), *heads, *(f"##{tail}" for tail in tails)])
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer, {"cls_token": "[CLS]", "mask_token": {"__type": "AddedToken", "content": "[MASK]", "lstrip": True}, "clean_up_tokenization_spaces": True}


def word_end():
    """CLIP's and GPT-1's shape: the end of a word is marked."""
    words = [(*word[:-1], word[-1] + "</w>") for word in bert_words()]
    merges = pairs_learnt(words, 100)
    vocab = numbered(["<unk>", *sorted(set(itertools.chain(*words))), *map("".join, merges)])
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges, end_of_word_suffix="</w>", unk_token="<unk>"))
    tokenizer.add_special_tokens(["<unk>"])
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder()
    return tokenizer, {"unk_token": "<unk>"}


def plain_words():
    """No decoder; the config adds tokens; truncation and padding from a training run are stored."""
    words = sorted({word for line in CORPUS for word in line.split()})
    tokenizer = tokenizers.Tokenizer(models.WordLevel({word: at for at, word in enumerate(["[UNK]", *words])}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(max_length=3)
    tokenizer.enable_padding(pad_id=0, pad_token="[UNK]", length=8)
    decoder = {"70": {"content": "<extra>", "special": False, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}, "71": {"content": "<|im_end|>", "special": True, "normalized": False, "lstrip": True, "rstrip": False, "single_word": False}}
    return tokenizer, {"eos_token": "</s>", "unk_token": "[UNK]", "image_token": "[MASK]", "added_tokens_decoder": decoder}


def old_words():
    """An older folder: further tokens in files of their own, beside a config that lists none."""
    words = sorted({word for line in CORPUS for word in line.split()})
    tokenizer = tokenizers.Tokenizer(models.WordLevel({word: at for at, word in enumerate(["[UNK]", *words])}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_tokens([added("<known>", special=False)])
    more = len(words) + 2
    return tokenizer, {"unk_token": "[UNK]", "eos_token": "</s>"}, {
        "added_tokens.json": {"<|im_end|>": more + 2, "<extra>": more, "[MASK]": more + 1, "</s>": more + 3, "<known>": more - 1},
        "special_tokens_map.json": {"eos_token": "<|im_end|>", "mask_token": {"content": "[MASK]", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}},
    }


def of_class(made, name, model_type, **more):
    """A folder whose config names a class that builds the pipeline itself."""
    tokenizer, config = made
    config = {key: value for key, value in config.items() if not key.startswith("add_")}
    return tokenizer, {**config, "tokenizer_class": name, **more}, {"config.json": {"model_type": model_type}}


def tokenizer_folders():
    """The files of each tokenizer, by name."""
    made = {
        "byte-level": byte_level(),
        "llama2": byte_fallback(prefix_space=True),
        "gemma": byte_fallback(prefix_space=False),
        "unigram": unigram(),
        "wordpiece": wordpiece(),
        "word-end": word_end(),
        "plain-words": plain_words(),
        "old-words": old_words(),
        "llama-class": of_class(byte_fallback(prefix_space=True), "LlamaTokenizer", "llama"),
        "llama-class-legacy": of_class(byte_fallback(prefix_space=True), "LlamaTokenizerFast", "llama", legacy=True),
        "llama-class-no-prefix": of_class(byte_fallback(prefix_space=True), "LlamaTokenizer", "llama", add_prefix_space=False),
        "llama-class-mistral": of_class(byte_fallback(prefix_space=True), "LlamaTokenizer", "mistral"),
        "gemma-class": of_class(byte_fallback(prefix_space=False), "GemmaTokenizer", "gemma"),
    }
    return {name: {"tokenizer.json": json.loads(it.to_str()), "tokenizer_config.json": config, **(more[0] if more else {})} for name, (it, config, *more) in made.items()}


def tokenizer_fixture(name, files):
    """What transformers encodes and decodes with these files."""
    with tempfile.TemporaryDirectory() as folder:
        for file, content in files.items():
            pathlib.Path(folder, file).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        loader = AutoTokenizer if "config.json" in files else PreTrainedTokenizerFast
        tokenizer = loader.from_pretrained(folder)
    encoded = [{"text": text, "ids": tokenizer(text)["input_ids"], "plain": tokenizer(text, add_special_tokens=False)["input_ids"]} for text in TEXTS]
    generator = random.Random(name)
    # Ids beyond the vocabulary too: models have more rows than tokenizers have tokens.
    drawn = [[generator.randrange(len(tokenizer) + 3) for _ in range(generator.randrange(1, 30))] for _ in range(24)]
    decoded = [{"ids": ids, "text": tokenizer.decode(ids), "skipping": tokenizer.decode(ids, skip_special_tokens=True)} for ids in [it["ids"] for it in encoded] + drawn]
    return {
        "made_by": MADE_BY,
        "kind": "tokenizer",
        "files": files,
        "vocab_size": len(tokenizer),
        "special_tokens": tokenizer.special_tokens_map,
        "encoded": encoded,
        "decoded": decoded,
    }


# Special ids


def special_ids_fixture():
    """The ids `generate()` ends up with, for folders in which it finds any."""
    folders = [
        {"config.json": {"bos_token_id": 1, "eos_token_id": 2}},
        {"config.json": {"bos_token_id": 1, "eos_token_id": [2, 5], "pad_token_id": 0}},
        {"config.json": {"text_config": {"bos_token_id": 4, "eos_token_id": 6}}},
        {"config.json": {"eos_token_id": 2}, "generation_config.json": {"bos_token_id": 3, "eos_token_id": [7, 2, 9]}},
        {"config.json": {"bos_token_id": 3, "eos_token_id": 2, "pad_token_id": 2}, "generation_config.json": {"bos_token_id": 3, "eos_token_id": 8, "pad_token_id": 0}},
        {"config.json": {"bos_token_id": None, "eos_token_id": 3}},
        {"config.json": {"eos_token_id": 2}, "generation_config.json": {"eos_token_id": None}},
    ]
    cases = []
    for files in folders:
        with tempfile.TemporaryDirectory() as folder:
            for file, content in files.items():
                pathlib.Path(folder, file).write_text(json.dumps(content), encoding="utf-8")
            last = "generation_config.json" if "generation_config.json" in files else "config.json"
            config = GenerationConfig.from_pretrained(folder, config_file_name=last, _from_model_config=last == "config.json")
        eos = config.eos_token_id
        eos = [] if eos is None else eos if isinstance(eos, list) else [eos]
        pad = config.pad_token_id if config.pad_token_id is not None or not eos else eos[0]
        cases.append({"files": files, "bos": config.bos_token_id, "eos": eos, "pad": pad})
    return {"made_by": MADE_BY, "kind": "special_ids", "cases": cases}
