"""What transformers makes of published tokenizers: `cargo xtask tokenizers` runs this on downloaded folders.

Writes, in the format of the areas `templates` and `stopping`, a file per tokenizer and kind: texts encoded and
decoded, conversations rendered, stop strings looked for. `cargo xtask parity` reads them like any other. They hold
the tokenizers themselves, so they stay in the ignored build folder.
"""

import argparse
import json
import pathlib
import random
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import stopping  # noqa: E402
import templates  # noqa: E402
from _fixture import write_json  # noqa: E402
from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: E402

# The kind of model that a tokenizer was published with, by which transformers chooses its class. The packages do not
# hold it. Without one it is a tokenizer for its file alone.
MODELS = {
    "aya_expanse": "cohere", "command_r_plus": "cohere", "deepseek_v3": "deepseek_v3", "gemini": "gemma2", "gemma2": "gemma2",
    "gemma3": "gemma3_text", "gpt2": "gpt2", "gptoss": "gpt_oss", "llama2": "llama", "llama3": "llama", "llama3_1": "llama",
    "llama3_2": "llama", "mistral_nemo": "mistral", "qwen2_5": "qwen2", "qwen3": "qwen3", "yi": "llama",
}  # fmt: skip
# Token sequences in which stop strings are looked for: transformers compares each token of the vocabulary with them in
# Python.
SEQUENCES = 3
# How many pieces of this project's pages and sources are encoded, beside the texts of the area `templates`.
PIECES = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=pathlib.Path, nargs="+")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    stopping.SEQUENCES = SEQUENCES
    for folder in arguments.folders:
        record(folder, arguments.out)


def record(folder: pathlib.Path, out: pathlib.Path) -> None:
    name = folder.name
    if name in MODELS:
        (folder / "config.json").write_text(json.dumps({"model_type": MODELS[name]}))
    files = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    loader = AutoTokenizer if name in MODELS else PreTrainedTokenizerFast
    tokenizer = loader.from_pretrained(folder)
    for area in ("templates", "stopping"):
        (out / area).mkdir(parents=True, exist_ok=True)
    write_json(out / "templates" / f"{name}-text.json", texts(name, files, tokenizer))
    write_json(out / "stopping" / f"{name}.json", stopping.criteria(files, name))
    if tokenizer.chat_template is not None:
        write_json(out / "templates" / f"{name}-chat.json", chats(files["tokenizer_config.json"], tokenizer))


def texts(name: str, files: dict, tokenizer) -> dict:
    """As `templates.tokenizer_fixture`, with pieces of real texts."""
    generator = random.Random(name)
    encode = lambda text: {
        "text": text,
        "ids": tokenizer(text)["input_ids"],
        "plain": tokenizer(text, add_special_tokens=False)["input_ids"],
    }
    encoded = [encode(text) for text in [*templates.TEXTS, *pieces(generator)]]
    vocab = len(tokenizer)
    drawn = [[generator.randrange(vocab + 3) for _ in range(generator.randrange(1, 30))] for _ in range(200)]
    decoded = [
        {"ids": ids, "text": tokenizer.decode(ids), "skipping": tokenizer.decode(ids, skip_special_tokens=True)}
        for ids in [it["ids"] for it in encoded] + drawn
    ]
    return {
        "made_by": templates.MADE_BY, "kind": "tokenizer", "files": files, "vocab_size": vocab,
        "special_tokens": tokenizer.special_tokens_map, "encoded": encoded, "decoded": decoded,
    }  # fmt: skip


def pieces(generator: random.Random) -> list[str]:
    root = HERE.parent.parent
    paths = [*root.glob("docs/*.md"), *root.glob("crates/*/README.md"), *root.glob("crates/*/src/*.rs"), *HERE.glob("*.py")]
    sources = [path.read_text(encoding="utf-8") for path in sorted(paths)]
    sources = [text for text in sources if len(text) > 400]
    found = []
    for _ in range(PIECES):
        text = generator.choice(sources)
        start = generator.randrange(len(text) - 300)
        found.append(text[start : start + generator.randrange(1, 300)])
    return found


def chats(config: dict, tokenizer) -> dict:
    """As `templates.chat_fixture`, for the published template: all conversations, with and without tools."""
    cases = []
    for name in templates.CONVERSATIONS:
        for option in ({}, {"tools": True}):
            for prompt in (True, False):
                case = {"conversation": name, "add_generation_prompt": prompt, **option}
                cases.append({**case, **templates.rendered(tokenizer, case)})
    return {
        "made_by": templates.MADE_BY, "kind": "chat", "tokenizer_config": config, "now": templates.NOW.isoformat(),
        "conversations": templates.CONVERSATIONS, "tools": templates.TOOLS, "documents": templates.DOCUMENTS,
        "cases": cases,
    }  # fmt: skip


if __name__ == "__main__":
    main()
