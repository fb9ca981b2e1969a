"""Writes what the fuzz targets begin with, from the fixtures: a folder per target in fuzz/corpus.

`python3 fuzz/seeds.py`
"""

import json
import pathlib
import struct

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures"
CORPUS = ROOT / "fuzz/corpus"


def write(target: str, seeds: list[bytes]) -> None:
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    for at, seed in enumerate(seeds):
        (folder / f"seed-{at}").write_bytes(seed)
    print(f"{target}: {len(seeds)}")


def found(value, key: str) -> list:
    """Every value of a key, however deep."""
    if isinstance(value, dict):
        own = [value[key]] if key in value else []
        return own + [it for part in value.values() for it in found(part, key)]
    if isinstance(value, list):
        return [it for part in value for it in found(part, key)]
    return []


def fixtures(area: str) -> list:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((FIXTURES / area).glob("*.json"))]


def text(value) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def grammars() -> list[bytes]:
    cases = json.loads((ROOT / "crates/grammars/tests/cases.json").read_text(encoding="utf-8"))
    lark = ['start: "a" b* | b\nb: /[0-9]+/ "c"?', 'start: "call " %json {"type": "object"}', 'start: A ~ 2..4\nA: "x" | "y"']
    kinds = [(b"\0\0", map(text, cases["schemas"])), (b"\1\3", map(str.encode, cases["expressions"])), (b"\2\7", map(str.encode, lark))]
    return [start + seed for start, seeds in kinds for seed in seeds]


def tokenizers() -> list[bytes]:
    """A tokenizer and its config, parted where the first byte says, in shares of 255."""
    share, seeds = 204, []
    for files in [it for fixture in fixtures("templates") for it in found(fixture, "files")]:
        if isinstance(files, dict) and "tokenizer.json" in files:
            first = text(files["tokenizer.json"])
            first += b" " * (-len(first) % share)
            rest = text(files.get("tokenizer_config.json", {}))
            seeds.append(bytes([share]) + first + rest.ljust(len(first) // share * (255 - share)))
    return [seed for seed in seeds if len(seed) < 65_000]


def adapters() -> list[bytes]:
    seeds = []
    for folder in sorted((FIXTURES / "training").glob("*/adapter_config.json")):
        config, weights = folder.read_bytes(), next(folder.parent.glob("*.safetensors")).read_bytes()
        kind = 2 if "prompt" in folder.parent.name else 1 if folder.parent.name.startswith("mlx") else 0
        seeds.append(struct.pack(">BH", kind, len(config)) + config + weights)
    return seeds


def main() -> None:
    models = sorted(path.parent for path in (FIXTURES / "models").glob("*/model.safetensors"))
    whole = (FIXTURES / "models/llama/model.safetensors").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model.safetensors"}}
    templates = [it for fixture in fixtures("templates") for it in found(fixture, "chat_template") + found(fixture, "template")]
    configs = [it for fixture in fixtures("generate") + fixtures("config") for key in ("kwargs", "config") for it in found(fixture, key)]
    steering = sorted((FIXTURES / "steering/files").iterdir())
    own = text({"__metadata__": {"format": "mlxgk-steering", "version": "1"}, "resid_post.0": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})
    own = b"\5" + struct.pack("<Q", len(own)) + own + struct.pack("<2f", 1.0, -2.5)
    write("adapters", adapters())
    write("cache_files", [b"\x05" + path.read_bytes() for path in sorted((FIXTURES / "caches/files").glob("*.safetensors"))])
    write("chat_template", [it.encode() for it in dict.fromkeys(it for it in templates if isinstance(it, str))])
    write("generation_config", list(dict.fromkeys(text(it) for it in configs if isinstance(it, dict)))[:400])
    write("grammar", grammars())
    write("model_config", [bytes([at]) + (model / "config.json").read_bytes() for at, model in enumerate(models)])
    write("scores", [bytes([at, at * 37 % 256, 128]) + struct.pack("<4f", 1.0, -2.5, float("-inf"), 3e38) for at in range(16)])
    write("steering_files", [bytes([kind]) + path.read_bytes() for path in steering for kind in range(6)] + [own])
    write("streaming", [bytes([at, *range(0, 31, 1 + at % 5)]) for at in range(16)])
    write("tokenizer", tokenizers())
    write("weights", [b"\0" + whole[:header], b"\0" + whole, b"\1" + text(index)])


if __name__ == "__main__":
    main()
