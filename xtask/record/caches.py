"""Area `caches`: what mlx-lm generates with rotating and with quantized caches, and the errors of each bit width.

mlx-lm's model is driven with mlx-lm's own caches, in fp32, on the folders of the area `models`. The cases have
the form of the area `generate`, with the fields that mlx-genkit has for these caches, and the `logprobs` of the
tokens; `error`, how far some log-probability after a token of `text` is from that with a plain cache.

Where passes cut a text, mlx-lm's rotating cache lets queries of a longer pass see other tokens than they would
one by one, so here it is fed one by one, which is its definition.
"""

import pathlib

import mlx.core as mx
import numpy
import torch
from mlx_lm import utils
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import KVCache, QuantizedKVCache, RotatingKVCache, save_prompt_cache

import _fixture
import models

NEW_TOKENS = 24
BITS = (2, 3, 4, 5, 6, 8)


def record(out: pathlib.Path) -> None:
    mx.set_default_device(mx.cpu)
    for name, cases_of in (("qwen2", rotating_cases), ("qwen3", rotating_cases), ("qwen3-q8", quantized_cases)):
        folder = out.parent / "models" / name
        model, _ = utils.load_model(folder)
        model.set_dtype(mx.float32)
        recorded = {
            "made_by": _fixture.made_by("mlx", "mlx-lm"),
            "model": f"../models/{name}",
            "cases": cases_of(model),
        }
        _fixture.write_json(out / f"{name}.json", recorded)
    (out / "files").mkdir(exist_ok=True)
    record_files(out / "files")
    record_model_file(out.parent / "models" / "qwen2", out / "files" / "qwen2.safetensors")


def rotating_cases(model) -> list[dict]:
    """Windows that the prompt overflows, that the new tokens do, and sinks of several numbers."""
    cases = []
    for size, keep, lengths in ((16, 4, (40, 7)), (12, 0, (29,)), (25, 7, (5, 18)), (256, 4, (300,))):
        config = {"max_kv_size": size, **({} if keep == 4 else {"kv_keep": keep})}
        make = lambda size=size, keep=keep: RotatingKVCache(size, keep)  # noqa: E731
        cases.append(settled(model, f"rotating {size}, keep {keep}", config, lengths, make, one_by_one=True))
    return cases


def quantized_cases(model) -> list[dict]:
    """Each width from the first token on, and 4 bits from a later one on, as `mlx_lm.generate` does it."""
    cases = []
    for bits in BITS:
        config = {"kv_bits": bits, "kv_group_size": 32}
        make = lambda bits=bits: QuantizedKVCache(32, bits)  # noqa: E731
        case = settled(model, f"{bits} bits", config, (37, 9), make)
        case["error"] = error(model, make)
        cases.append(case)
    config = {"kv_bits": 4, "kv_group_size": 32, "quantized_kv_start": 20}
    cases.append(settled(model, "4 bits from token 20 on", config, (13,), KVCache, start=20))
    return cases


def settled(model, name: str, config: dict, lengths, make, **how) -> dict:
    """The first draw of prompts whose tokens no rounding could change."""
    for draw in range(40):
        rng = numpy.random.default_rng([57, draw, *lengths])
        vocab = model.args.vocab_size
        prompts = [rng.integers(3, vocab, length).tolist() for length in lengths]
        rows = [greedy(model, prompt, make, **how) for prompt in prompts]
        plain = [greedy(model, prompt, KVCache) for prompt in prompts]
        felt = any(a[0] != b[0] or max(abs(x - y) for x, y in zip(a[1], b[1])) > 1e-3 for a, b in zip(rows, plain))
        if felt and min(gap for _, _, gap in rows) > models.QUANTIZED_TOKEN_GAP:
            break
    else:
        raise SystemExit(f"{name}: every draw is near a tie, or does not feel the cache")
    config = {**config, "do_sample": False, "max_new_tokens": NEW_TOKENS, "eos_token_id": []}
    return {
        "name": name,
        "config": config,
        "seed": None,
        "prompts": prompts,
        "tokens": [tokens for tokens, _, _ in rows],
        "logprobs": _fixture.rounded([logprobs for _, logprobs, _ in rows]),
        "finish_reasons": ["length"] * len(rows),
    }


def greedy(model, prompt: list[int], make, one_by_one: bool = False, start: int | None = None):
    """The tokens, the log-probability of each, and the narrowest gap to the second best."""
    caches = [make() for _ in model.layers]
    row = None
    for part in [[it] for it in prompt] if one_by_one else [prompt]:
        row = feed(model, part, caches)
    tokens, logprobs, gap = [], [], float("inf")
    while True:
        best = numpy.argsort(row)[-2:]
        gap = min(gap, float(row[best[1]] - row[best[0]]))
        tokens.append(int(best[1]))
        logprobs.append(float(row[best[1]]))
        if len(tokens) == NEW_TOKENS:
            return tokens, logprobs, gap
        if start is not None:
            quantize_from(start, caches)
        row = feed(model, tokens[-1:], caches)


def quantize_from(start: int, caches: list) -> None:
    """mlx-lm's `maybe_quantize_kv_cache`."""
    for index, cache in enumerate(caches):
        if isinstance(cache, KVCache) and cache.offset >= start:
            quantized = cache.to_quantized(group_size=32, bits=4)
            # `update_and_fetch` assigns into the lists that `__init__` would have made.
            quantized.keys, quantized.values = list(quantized.keys), list(quantized.values)
            caches[index] = quantized


def feed(model, tokens: list[int], caches: list) -> numpy.ndarray:
    """The log-probabilities after the last token."""
    logits = numpy.array(model(mx.array([tokens]), cache=caches)[0, -1].astype(mx.float32))
    return torch.log_softmax(torch.from_numpy(logits), -1).numpy()


def error(model, make) -> dict:
    """The widest difference of a log-probability from a plain cache's, over a text of 64 tokens."""
    rng = numpy.random.default_rng([57, 64])
    text = rng.integers(3, model.args.vocab_size, 64).tolist()
    caches, plain = [make() for _ in model.layers], [KVCache() for _ in model.layers]
    worst = max(float(numpy.abs(feed(model, [it], caches) - feed(model, [it], plain)).max()) for it in text)
    return {"text": text, "worst": _fixture.rounded(worst)}


# Prompt-cache files


def record_files(out: pathlib.Path) -> None:
    """One layer whose columns hold the number of their place, in mlx-lm's format and in that before 0.32."""
    # Both formats pad to this; small files will do.
    KVCache.step = QuantizedKVCache.step = 16
    for name, make, length in (
        ("dense", KVCache, 11),
        ("packed", lambda: QuantizedKVCache(32, 4), 11),
        ("rotating", lambda: RotatingKVCache(6, 2), 11),
        ("rotating-early", lambda: RotatingKVCache(6, 2), 4),
        ("window", lambda: RotatingKVCache(6, 0), 11),
    ):
        cache = make()
        for place in range(length):
            column = mx.full((1, 1, 1, 32), float(place))
            cache.update_and_fetch(column, column)
        metadata = {"model": "./tiny", "tokenizer_config": "{}"}
        save_prompt_cache(str(out / f"v2-{name}.safetensors"), [cache], metadata)
        if name in ("dense", "packed", "rotating"):
            save_old(out / f"v1-{name}.safetensors", cache, metadata)


def record_model_file(folder: pathlib.Path, path: pathlib.Path) -> None:
    """The cache of a text, as mlx-lm keeps it of a whole model."""
    model, _ = utils.load_model(folder)
    model.set_dtype(mx.float32)
    caches = [KVCache() for _ in model.layers]
    model(mx.array([[it * 7 % 131 + 3 for it in range(40)]]), cache=caches)
    save_prompt_cache(str(path), caches, {"model": "./qwen2", "tokenizer_config": "{}"})


def save_old(path: pathlib.Path, cache, metadata: dict) -> None:
    """As mlx-lm 0.31.3 wrote it (compared with what it writes): the live columns, and the numbers of the state as strings."""
    live = lambda it: it[..., : cache.offset, :]  # noqa: E731
    meta = {"KVCache": lambda: "", "QuantizedKVCache": lambda: (cache.offset, cache.group_size, cache.bits),
            "RotatingKVCache": lambda: (cache.keep, cache.max_size, cache.offset, cache._idx)}[type(cache).__name__]()  # fmt: skip
    meta = tuple(map(str, meta)) if meta else meta
    state = tree_map(live, (cache.keys, cache.values))
    tensors = dict(tree_flatten([state]))
    described = dict(tree_flatten([[meta], metadata, [type(cache).__name__]]))
    mx.save_safetensors(str(path), tensors, described)
