"""Area `models`: tiny models of every family, and what transformers computes with them in fp32.

For each model of `_tiny.py` this writes the folder and one JSON file: log-probabilities over whole
prompts, the residual stream after each block, greedy continuations of single prompts and of
left-padded batches, and batches whose rows end at different steps. Quantized folders come from
mlx-lm (`_quantized.py`). The fields are described in `fixtures/README.md`.
"""

import contextlib
import itertools
import pathlib
import tempfile

import numpy
import torch
from transformers.utils import logging

import _fixture
import _foreign
import _quantized
import _small
import _tiny

NEW_TOKENS = 40
# No step may be nearer to a tie than this, in logits for tokens and in probability for experts:
# rounding differs between implementations by some 1e-5.
TOKEN_GAP = 2e-3
QUANTIZED_TOKEN_GAP = 5e-3
EXPERT_GAP = 5e-5
# Changing a token six positions back, or a config field that should matter, moves some
# log-probability by at least this much.
FELT = 0.05
# A last bit more or less in every product may move a log-probability of a long prompt by this much: what
# two implementations may differ by is 1e-4, and both round.
ROUNDED = 6e-5
ROUNDINGS = 12


class TooClose(Exception):
    """A draw of weights with a near tie or with an attention that hardly matters."""


def record(out: pathlib.Path) -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    for tiny in _tiny.MODELS + _small.MODELS + _small.UNPADDED + _small.VARIANTS:
        with_good_seed(tiny, lambda seed, tiny=tiny: record_model(tiny, out, seed))
    for tiny in _small.PACKED:
        with_good_seed(tiny, lambda seed, tiny=tiny: record_packed(tiny, out, seed))
    with tempfile.TemporaryDirectory() as sources:
        for tiny in _tiny.QUANTIZED_SOURCES + _small.QUANTIZED_SOURCES:
            source = pathlib.Path(sources) / tiny.name
            with_good_seed(tiny, lambda seed, tiny=tiny, source=source: record_quantized(tiny, source, out, seed))
        for tiny in _tiny.FOREIGN_SOURCES:
            source = pathlib.Path(sources) / tiny.name
            with_good_seed(tiny, lambda seed, tiny=tiny, source=source: record_foreign(tiny, source, out, seed))
    record_restacked(out, "qwen3-moe", "qwen3-moe-stacked")
    record_restacked(out, "qwen3_5", "qwen3_5-mlx")
    record_restacked(out, "deepseek-v3", "deepseek-v3-mlx")
    record_restacked(out, "lfm2-moe", "lfm2-moe-mlx")
    record_restacked(out, "granite-hybrid", "granite-hybrid-mlx")
    record_restacked(out, "falcon-h1", "falcon-h1-mlx")
    record_restacked(out, "kimi-linear", "kimi-linear-mlx")
    record_restacked(out, "laguna", "laguna-mlx")
    record_restacked(out, "nemotron-h", "nemotron-h-mlx")


def record_packed(tiny: _tiny.Tiny, out: pathlib.Path, seed: int) -> None:
    """A model whose experts are packed once it is recorded."""
    record_model(tiny, out, seed)
    _small.pack(out / tiny.name, seed)


def record_restacked(out: pathlib.Path, source: str, name: str) -> None:
    """The same weights and expectations, in the layout in which mlx-lm saves the model."""
    _quantized.restack(out / source, out / name)
    recorded = _fixture.read_json(out / f"{source}.json")
    made_by = _fixture.made_by("mlx", "mlx-lm", "torch", "transformers")
    _fixture.write_json(out / f"{name}.json", {**recorded, "made_by": made_by, "model": name})


def with_good_seed(tiny: _tiny.Tiny, attempt) -> None:
    """Calls `attempt(seed)` with the model's seed, and with later ones while the draw is too close."""
    for seed in itertools.count(tiny.seed):
        try:
            attempt(seed)
        except TooClose as reason:
            print(f"{tiny.name}: seed {seed}: {reason}", flush=True)
            continue
        return


def record_model(tiny: _tiny.Tiny, out: pathlib.Path, seed: int) -> None:
    folder = out / tiny.name
    _tiny.build(tiny, folder, seed)
    model = _tiny.load(folder)
    prompts = draw_prompts(tiny, seed)
    long_prompts = draw_long_prompts(tiny, model, seed)
    with expert_gaps() as gaps:
        recorded = {
            "made_by": _fixture.made_by("torch", "transformers"),
            "reference": "transformers",
            "model": tiny.name,
            "family": tiny.family,
            "seed": seed,
            "forward": [forward_case(model, prompt) for prompt in prompts + long_prompts],
            "greedy": [greedy_case(model, [prompt]) for prompt in prompts],
            "batches": batch_cases(model, tiny, seed),
            "eos": eos_case(model, tiny, seed),
        }
    check_expert_gaps(gaps)
    check_sensitivity(model, tiny, folder, prompts)
    _fixture.write_json(out / f"{tiny.name}.json", recorded)


def draw_prompts(tiny: _tiny.Tiny, seed: int, lengths: tuple[int, ...] | None = None) -> list[list[int]]:
    """Prompts of the given lengths; ids 0 to 2 stay free for padding and special tokens."""
    rng = numpy.random.default_rng([seed, 7])
    lengths = tiny.lengths if lengths is None else lengths
    return [rng.integers(3, tiny.vocab_size, length).tolist() for length in lengths]


def draw_long_prompts(tiny: _tiny.Tiny, model, seed: int) -> list[list[int]]:
    """Long prompts, drawn again while rounding alone could move a log-probability out of the tolerance."""
    for attempt in itertools.count():
        prompts = draw_prompts(tiny, seed + 3000 + 10_000 * attempt, tiny.long_prompt)
        moved = max((moved_by_rounding(model, it) for it in prompts), default=0.0)
        if moved <= ROUNDED:
            return prompts
        print(f"{tiny.name}: rounding moves a long prompt by {moved:.1e}", flush=True)


def moved_by_rounding(model, prompt: list[int]) -> float:
    """How far log p of a next token moves when the products' last bits do."""
    generator = torch.Generator().manual_seed(0)

    def rounded_otherwise(_module, _inputs, output):
        bits = torch.rand(output.shape, generator=generator) * 2 - 1
        return output * (1 + bits * torch.finfo(torch.float32).eps)

    def logprobs():
        with torch.no_grad():
            rows = torch.log_softmax(model(torch.tensor([prompt])).logits[0].float(), -1)
        return rows[:-1].gather(-1, torch.tensor(prompt[1:])[:, None])

    reference = logprobs()
    linears = [it for it in model.modules() if type(it) is torch.nn.Linear]
    handles = [it.register_forward_hook(rounded_otherwise) for it in linears]
    try:
        return max((logprobs() - reference).abs().max().item() for _ in range(ROUNDINGS))
    finally:
        for handle in handles:
            handle.remove()


def forward_case(model, prompt: list[int]) -> dict:
    """One uncached pass: log p of each next token, whole rows at three positions, hidden states."""
    with torch.no_grad(), residuals(model) as layers:
        logits = model(torch.tensor([prompt])).logits[0]
    logprobs = torch.log_softmax(logits.float(), -1)
    last = len(prompt) - 1
    positions = sorted({0, last // 2, last})
    return {
        "prompt": prompt,
        "logprobs": _fixture.rounded([logprobs[i, token] for i, token in enumerate(prompt[1:])]),
        "positions": positions,
        "rows": _fixture.rounded(logprobs[positions]),
        "layers": list(range(len(layers))),
        # [layer][position][hidden]
        "hidden": _fixture.rounded(torch.stack(layers)[:, positions], 5),
    }


@contextlib.contextmanager
def residuals(model):
    """Collects the residual stream after each block. (The tuple that transformers returns ends with
    the normed state instead of the last block's.)"""
    kept = []

    def keep(_module, _inputs, output):
        state = output[0] if isinstance(output, tuple) else output
        # Of several streams the first.
        state = state[0] if state.ndim == 4 else state
        kept.append(state[0].float())

    handles = [layer.register_forward_hook(keep) for layer in _tiny.text_of(model).layers]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def expert_gaps():
    """Collects, for every routed token, how far the last chosen expert was ahead of the next."""
    gaps: list[float] = []
    routing = []
    originals = torch.topk, torch.Tensor.topk

    def spying_on(original):
        def spying(scores, k, *arguments, **options):
            if routing and k < scores.shape[-1]:
                ranked = scores.float().sort(-1, descending=True).values
                ahead = ranked[..., k - 1] - ranked[..., k]
                gaps.append(ahead[~ahead.isnan()].min().item())
            return original(scores, k, *arguments, **options)

        return spying

    # Whatever a router ranks with `topk`: experts, or groups of them.
    def is_router(module) -> bool:
        return type(module).__name__.lower().endswith("router")

    def enter(module, _inputs):
        if is_router(module):
            routing.append(module)

    def leave(module, _inputs, _output):
        if is_router(module):
            routing.pop()

    modules = torch.nn.modules.module
    handles = [modules.register_module_forward_pre_hook(enter), modules.register_module_forward_hook(leave)]
    torch.topk, torch.Tensor.topk = map(spying_on, originals)
    try:
        yield gaps
    finally:
        torch.topk, torch.Tensor.topk = originals
        for handle in handles:
            handle.remove()


def check_expert_gaps(gaps: list[float]) -> None:
    if gaps and min(gaps) < EXPERT_GAP:
        raise TooClose(f"two experts {min(gaps):.1e} apart")


def left_padded(prompts: list[list[int]], pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask of a batch, padded on the left."""
    width = max(len(it) for it in prompts)
    ids = [[pad] * (width - len(it)) + it for it in prompts]
    mask = [[0] * (width - len(it)) + [1] * len(it) for it in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def greedy(model, prompts: list[list[int]], **config) -> tuple[list[list[int]], list[list[float]]]:
    """The new tokens of each row, with the log-probability each one had."""
    ids, mask = left_padded(prompts)
    # Sampling settings in the model's own generation config are put out of action here.
    result = model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS, output_logits=True,
        return_dict_in_generate=True, **config,
    )  # fmt: skip
    tokens = result.sequences[:, ids.shape[1] :]
    logits = torch.stack(result.logits, 1).float()
    best = logits.topk(2, -1).values
    gap = (best[..., 0] - best[..., 1]).min().item()
    if gap < TOKEN_GAP:
        raise TooClose(f"two tokens {gap:.1e} apart")
    logprobs = torch.log_softmax(logits, -1).gather(-1, tokens[..., None])[..., 0]
    return tokens.tolist(), logprobs.tolist()


def greedy_case(model, prompts: list[list[int]]) -> dict:
    tokens, logprobs = greedy(model, prompts)
    if len(set(tokens[0])) < 5:
        raise TooClose(f"a continuation of only {len(set(tokens[0]))} different tokens")
    if len(prompts) == 1:
        return {"prompt": prompts[0], "tokens": tokens[0], "logprobs": _fixture.rounded(logprobs[0])}
    return {"prompts": prompts, "tokens": tokens, "logprobs": _fixture.rounded(logprobs)}


def batch_cases(model, tiny: _tiny.Tiny, seed: int) -> list[dict]:
    """Left-padded batches, each of whose rows continues as it does alone.

    `rows_stand_alone` is false for one kind of batch: longrope chooses its factors for a whole
    batch by its longest row, so a shorter row changes when the longest one passes the threshold.
    """
    prompts = draw_prompts(tiny, seed + 1000, tiny.batch)
    case = greedy_case(model, prompts)
    for prompt, tokens in zip(prompts, case["tokens"], strict=True):
        assert greedy(model, [prompt])[0][0] == tokens, f"{tiny.name}: a padded row differs from the row alone"
    cases = [{**case, "rows_stand_alone": True}]
    if tiny.mixed_batch is not None:
        mixed = greedy_case(model, draw_prompts(tiny, seed + 2000, tiny.mixed_batch))
        cases.append({**mixed, "rows_stand_alone": False})
    return cases


def eos_case(model, tiny: _tiny.Tiny, seed: int) -> dict:
    """A batch whose rows end at different steps, with two end tokens."""
    prompts = draw_prompts(tiny, seed + 1000, tiny.batch)
    tokens, _ = greedy(model, prompts)
    ends = [tokens[0][9], tokens[1][21]]
    padded, _ = greedy(model, prompts, eos_token_id=ends, pad_token_id=0)
    rows = [until_end(row, ends) for row in padded]
    if len({len(row) for row in rows}) < 3 or min(len(row) for row in rows) < 3:
        raise TooClose("rows that end together")
    return {
        "prompts": prompts, "max_new_tokens": NEW_TOKENS, "eos_token_id": ends, "pad_token_id": 0, "tokens": rows,
    }  # fmt: skip


def until_end(row: list[int], ends: list[int]) -> list[int]:
    """The row up to and including its first end token."""
    return row[: next((i + 1 for i, token in enumerate(row) if token in ends), len(row))]


def check_sensitivity(model, tiny: _tiny.Tiny, folder: pathlib.Path, prompts: list[list[int]]) -> None:
    """Earlier tokens matter, and so does every config field that the model is there to show."""
    longest = max(prompts, key=len)

    def rows(of, tokens):
        with torch.no_grad():
            return torch.log_softmax(of(torch.tensor([tokens])).logits[0].float(), -1)

    reference = rows(model, longest)
    touched = list(longest)
    touched[-7] = 3 if touched[-7] != 3 else 4
    moved = (rows(model, touched)[-1] - reference[-1]).abs().max().item()
    if moved < FELT:
        raise TooClose(f"an earlier token moves the last row by only {moved:.1e}")
    for overrides in tiny.matters:
        moved = (rows(_tiny.load(folder, **overrides), longest) - reference).abs().max().item()
        if moved < FELT:
            raise TooClose(f"{overrides} moves the log-probabilities by only {moved:.1e}")


def record_quantized(tiny: _tiny.Tiny, source: pathlib.Path, out: pathlib.Path, seed: int) -> None:
    """A folder written by mlx-lm, with what mlx-lm computes from it in fp32."""
    _tiny.build(tiny, source, seed)
    folder = out / tiny.name
    _quantized.convert(source, folder, tiny.name)
    with expert_gaps() as gaps:
        cases, gap = _quantized.cases(folder, draw_prompts(tiny, seed), NEW_TOKENS)
    if gap < QUANTIZED_TOKEN_GAP:
        raise TooClose(f"two tokens {gap:.1e} apart")
    check_expert_gaps(gaps)
    recorded = {
        "made_by": _fixture.made_by("mlx", "mlx-lm", "torch", "transformers"),
        "reference": "mlx-lm",
        "model": tiny.name,
        "family": tiny.family,
        "seed": seed,
        **cases,
    }
    _fixture.write_json(out / f"{tiny.name}.json", recorded)


def record_foreign(tiny: _tiny.Tiny, source: pathlib.Path, out: pathlib.Path, seed: int) -> None:
    """A folder in another quantizer's layout, with what transformers computes from its weights."""
    _tiny.build(tiny, source, seed)
    folder, undone = out / tiny.name, source.with_name(f"{tiny.name}-undone")
    _foreign.convert(source, folder, undone, tiny.name)
    model = _tiny.load(undone)
    prompts = draw_prompts(tiny, seed)
    if tiny.name == "llama-awq":
        theirs, _ = _quantized.utils.load_model(folder)
        theirs.set_dtype(_quantized.mx.float32)
        _quantized.agree(_quantized.log_softmax(theirs, prompts[-1]), model, prompts[-1], tiny.name)
    recorded = {
        "made_by": _fixture.made_by("torch", "transformers"),
        "reference": "transformers",
        "model": tiny.name,
        "family": tiny.family,
        "seed": seed,
        "forward": [forward_case(model, prompt) for prompt in prompts],
        "greedy": [greedy_case(model, [prompt]) for prompt in prompts],
    }
    _fixture.write_json(out / f"{tiny.name}.json", recorded)
