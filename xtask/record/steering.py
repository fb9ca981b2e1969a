"""Area `steering`: greedy continuations of the tiny models under torch forward hooks.

Each case says what is injected (vectors by hook point, operation, alpha, positions, schedule), and
holds the 32 tokens that transformers then chooses. The formulas are written out here once more, over
whole sequences without a cache, so that a token's place alone decides what happens to it. Logit bias
is added to what `lm_head` returns, before any soft-capping.

A case is drawn again while rounding could change its tokens, or while it changes none.
"""

import contextlib
import math
import pathlib

import numpy
import torch
from transformers.utils import logging

import _fixture
import _small
import _tiny
import models

MODELS = (
    "llama", "llama-llama3", "mistral", "qwen2", "qwen3", "qwen3-moe", "gemma", "gemma2", "gemma3", "phi3",
    "phi3-longrope-5x", "qwen3_5", "qwen3_5-moe", "qwen3-next",
)  # fmt: skip
NEW_TOKENS = 32
ATTEMPTS = 60
SINGLE, BATCH = (13,), (5, 17, 9)

# Name, lengths of the prompts, and injections: which layers, and what differs from adding at alpha 1
# to every token. A layer of "norm" is the place after the final norm, "logits" the logit bias.
CASES = (
    ("add, one layer", SINGLE, [dict(layers=[1])]),
    ("add, several layers", SINGLE, [dict(layers=[0, 2])]),
    ("add, all layers", SINGLE, [dict(layers="all", alpha=0.7)]),
    ("add, one prompt token", (1,), [dict(layers=[1])]),
    ("negative alpha", SINGLE, [dict(layers=[1], alpha=-1.3)]),
    ("after the final norm", SINGLE, [dict(layers=["norm"], alpha=0.8)]),
    ("prompt only", SINGLE, [dict(layers="all", positions="prompt", alpha=1.5)]),
    ("generation only", SINGLE, [dict(layers="all", positions="generation")]),
    ("windows", SINGLE, [dict(layers=[0, 1], positions="prompt[2..-3],generation[4..12]", alpha=1.6)]),
    ("without the prompt's end", SINGLE, [dict(layers=[1], positions="all,-prompt[-4..],-generation[3..6]", alpha=1.5)]),
    ("warm-up", SINGLE, [dict(layers="all", schedule="warmup:10", alpha=1.2)]),
    ("warm-up, generation", SINGLE, [dict(layers=[1], schedule="warmup:6", positions="generation", alpha=1.5)]),
    ("ramp", SINGLE, [dict(layers=[0, 1], schedule="ramp:3:15", alpha=1.5)]),
    ("cosine", SINGLE, [dict(layers=[1], schedule="cosine:20", alpha=1.5)]),
    ("decay", SINGLE, [dict(layers=[1], schedule="decay:6", alpha=2.0)]),
    ("pulse", SINGLE, [dict(layers=[1], schedule="pulse:5:0.4", alpha=1.5)]),
    ("points", SINGLE, [dict(layers=[1], schedule="points:2=1,8=-1,20=0.5", alpha=1.2)]),
    ("add-unit", SINGLE, [dict(layers=[1], op="add-unit", alpha=3.0)]),
    ("add-relative", SINGLE, [dict(layers="all", op="add-relative", alpha=0.3)]),
    ("norm-preserve", SINGLE, [dict(layers="all", op="norm-preserve", alpha=1.2)]),
    ("norm-preserve, warm-up", SINGLE, [dict(layers=[1], op="norm-preserve", alpha=1.5, schedule="warmup:8")]),
    ("ablate, one layer", SINGLE, [dict(layers=[1], op="ablate", along=True)]),
    ("ablate, all layers", SINGLE, [dict(layers="all", op="ablate", along=True)]),
    ("ablate a part", SINGLE, [dict(layers="all", op="ablate-partial", alpha=0.6, along=True)]),
    ("ablate, then add", SINGLE, [dict(layers=[1], op="ablate-add", alpha=0.9, along=True)]),
    ("ablate a subspace", SINGLE, [dict(layers=[0, 1], op="ablate-subspace", along=True, count=3)]),
    ("clamp", SINGLE, [dict(layers=[1], op="clamp", alpha=2.5)]),
    ("clamp, negative, generation", SINGLE, [dict(layers="all", op="clamp", alpha=-1.5, positions="generation")]),
    ("clamp, warm-up", SINGLE, [dict(layers=[1], op="clamp", alpha=3.0, schedule="warmup:5")]),
    ("cap, at most", SINGLE, [dict(layers="all", op="cap-max", alpha=-0.5)]),
    ("cap, at least", SINGLE, [dict(layers="all", op="cap-min", alpha=1.0)]),
    ("rotate", SINGLE, [dict(layers=[1], op="rotate", alpha=0.5)]),
    ("rotate back, ramp", SINGLE, [dict(layers=[0, 1], op="rotate", alpha=-0.6, schedule="ramp:0:9")]),
    ("replace the prompt's end", SINGLE, [dict(layers=[1], op="replace", positions="prompt[-2..]", alpha=1.0)]),
    ("two vectors", SINGLE, [dict(layers=[1], alpha=0.8), dict(layers=[1, 2], alpha=-0.7, positions="generation")]),
    ("logit bias", SINGLE, [dict(layers=["logits"], alpha=0.8)]),
    ("logit bias and a layer", SINGLE, [dict(layers=["logits"], alpha=-0.6), dict(layers=[0], alpha=0.8)]),
    ("batch, add", BATCH, [dict(layers="all", alpha=0.8)]),
    ("batch, windows and warm-up", BATCH, [
        dict(layers=[1], positions="prompt[0..2],prompt[-2..],generation", schedule="warmup:7", alpha=1.5)]),
    ("batch, clamp", BATCH, [dict(layers=[1], op="clamp", alpha=2.5, positions="generation")]),
    ("batch, token set", BATCH, [dict(layers=[0, 1], positions="tokens[{ids}],-generation[9..]", alpha=2.0)]),
)  # fmt: skip

# What the smaller models are asked for.
OF_SMALL = ("add, all layers", "batch, windows and warm-up")


def record(out: pathlib.Path) -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    folder = out.parent / "models"
    record_extraction(out / "extraction")
    record_files(out / "files")
    for name in MODELS + _small.NAMES:
        if not (folder / name).is_dir():
            raise SystemExit(f"{folder / name} is missing; record the area models first")
        model = _tiny.load(folder / name)
        wanted = [it for it in enumerate(CASES) if name in MODELS or it[1][0] in OF_SMALL]
        cases = [record_case(model, index, *case) for index, case in wanted]
        recorded = {
            "made_by": _fixture.made_by("torch", "transformers"),
            "model": f"../models/{name}",
            "cases": cases,
        }
        _fixture.write_json(out / f"{name}.json", recorded, lines_to=2)
        print(f"{name}: {len(cases)} cases", flush=True)


def record_case(model, index: int, name: str, lengths: tuple[int, ...], wanted: list[dict]) -> dict:
    for attempt in range(ATTEMPTS):
        try:
            return try_case(model, [index, attempt, SEED], name, lengths, wanted)
        except models.TooClose as reason:
            last = reason
    raise SystemExit(f"{model.config.model_type}, {name}: {last}, {ATTEMPTS} times")


# Another number gives other vectors and prompts.
SEED = 0


def try_case(model, draw: list[int], name: str, lengths: tuple[int, ...], wanted: list[dict]) -> dict:
    rng = numpy.random.default_rng(draw)
    prompts = [rng.integers(3, model.config.get_text_config().vocab_size, length).tolist() for length in lengths]
    plain = greedy(model, prompts, [])
    if len(set(plain[0])) < 4:
        raise models.TooClose("a plain run that repeats itself")
    ids = sorted({prompts[0][1], prompts[-1][2], plain[0][1], plain[-1][3]} if len(prompts) > 1 else set())
    injections = [draw_injection(model, rng, prompts[0], ids, it) for it in wanted]
    with models.expert_gaps() as gaps:
        tokens = greedy(model, prompts, injections)
    if gaps and min(gaps) < models.EXPERT_GAP:
        raise models.TooClose("two experts too near")
    if any(a == b for a, b in zip(tokens, plain, strict=True)):
        raise models.TooClose("steering without effect")
    case = {"name": name, "injections": injections, "prompts": prompts, "tokens": tokens}
    if len(prompts) > 1:
        # Longrope chooses its factors for a whole batch by its longest row.
        case["rows_stand_alone"] = (getattr(model.config, "rope_parameters", None) or {}).get("rope_type") != "longrope"
    return case


def draw_injection(model, rng, prompt: list[int], ids: list[int], wanted: dict) -> dict:
    """Vectors of about the size of what they are added to; `along` what is there, for ablation."""
    count = model.config.get_text_config().num_hidden_layers
    layers = list(range(count)) if wanted["layers"] == "all" else wanted["layers"]
    with torch.no_grad(), models.residuals(model) as states, normed(model) as last:
        model(torch.tensor([prompt]))
    sets = []
    for _ in range(wanted.get("count", 1)):
        vectors = {}
        for layer in layers:
            state = (last[0] if isinstance(layer, str) else states[layer])[0 if isinstance(layer, str) else slice(None)]
            point = {"norm": "final_norm", "logits": "logits"}.get(layer, f"resid_post.{layer}")
            size = state.norm(dim=-1).mean().item() / math.sqrt(state.shape[-1])
            vector = rng.normal(size=state.shape[-1]) * size * 0.5
            if wanted.get("along"):
                vector += state[rng.integers(len(state))].numpy() * 0.7
            vectors[point] = [round(float(it), 4) for it in vector]
        sets.append(vectors)
    op = wanted.get("op", "add")
    alpha = wanted.get("alpha", 1.0)
    if op in ("clamp", "cap-max", "cap-min", "add-unit"):
        # In units of the stream, like what they are compared with or added to.
        alpha = round(alpha * size, 4)
    return {
        "vectors": sets,
        "op": op,
        "alpha": alpha,
        "positions": wanted.get("positions", "all").format(ids=";".join(map(str, ids))),
        "schedule": wanted.get("schedule", "constant"),
    }


@contextlib.contextmanager
def normed(model):
    """Collects what the final norm returns."""
    kept = []
    handle = _tiny.final_norm(model).register_forward_hook(lambda _m, _i, output: kept.append(output.float()))
    try:
        yield kept
    finally:
        handle.remove()


def greedy(model, prompts: list[list[int]], injections: list[dict]) -> list[list[int]]:
    """32 tokens per row, each from a pass over everything before it."""
    ids, mask = models.left_padded(prompts)
    width = ids.shape[1]
    padding = [width - len(prompt) for prompt in prompts]
    gap = math.inf
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            with steered(model, injections, ids, padding, width):
                logits = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, -1].float()
            best = logits.topk(2, -1).values
            gap = min(gap, (best[:, 0] - best[:, 1]).min().item())
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    if gap < models.TOKEN_GAP:
        raise models.TooClose(f"two tokens {gap:.1e} apart")
    return ids[:, width:].tolist()


@contextlib.contextmanager
def steered(model, injections: list[dict], ids, padding: list[int], width: int):
    handles = []
    for injection in injections:
        strength = strengths(injection, ids, padding, width)
        for point in injection["vectors"][0]:
            vectors = [torch.tensor(it[point], dtype=torch.float32) for it in injection["vectors"]]

            def hook(_module, _inputs, output, point=point, vectors=vectors, injection=injection, strength=strength):
                state = output[0] if isinstance(output, tuple) else output
                if point == "logits":
                    bias = torch.nn.functional.linear(vectors[0], model.lm_head.weight)
                    return state + injection["alpha"] * bias
                # Padding too: no token ever looks at it.
                # Of several streams the first.
                stream = state[0] if state.ndim == 4 else state
                new = operate(stream, vectors, injection["op"], injection["alpha"], strength)
                new = torch.cat([new[None], state[1:]]) if state.ndim == 4 else new
                return (new, *output[1:]) if isinstance(output, tuple) else new

            if point == "logits":
                module = model.lm_head
            elif point == "final_norm":
                module = _tiny.final_norm(model)
            else:
                module = _tiny.text_of(model).layers[int(point.split(".")[1])]
            handles.append(module.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def strengths(injection: dict, ids, padding: list[int], width: int) -> torch.Tensor:
    """The schedule's factor for every token, 0 where it is not selected: `[batch, columns, 1]`."""
    rows = []
    for row, pad in zip(ids.tolist(), padding, strict=True):
        length = width - pad
        rows.append([
            factor(injection["schedule"], max(0, column - pad - (length - 1)))
            * selected(injection["positions"], column - pad, length, token)
            for column, token in enumerate(row)
        ])  # fmt: skip
    return torch.tensor(rows, dtype=torch.float64)[..., None]


def selected(positions: str, p: int, length: int, token: int) -> bool:
    included, excluded = False, False
    for clause in positions.split(","):
        hit = p >= 0 and holds(clause.lstrip("-"), p, length, token)
        if clause.startswith("-"):
            excluded |= hit
        else:
            included |= hit
    return included and not excluded


def holds(clause: str, p: int, length: int, token: int) -> bool:
    kind, _, inner = clause.rstrip("]").partition("[")
    if kind == "all":
        return True
    if kind == "tokens":
        return token in map(int, inner.split(";"))
    if not inner:
        return p < length if kind == "prompt" else p >= length - 1
    begin, _, end = inner.partition("..")
    if kind == "prompt":
        place = lambda it: int(it) + length if int(it) < 0 else int(it)  # noqa: E731
        return p < length and place(begin) <= p and (not end or p < place(end))
    step = p - (length - 1)
    return int(begin) <= step and (not end or step < int(end))


def factor(schedule: str, t: int) -> float:
    kind, *numbers = schedule.split(":")
    if kind == "constant":
        return 1.0
    if kind == "points":
        points = [tuple(map(float, it.split("="))) for it in numbers[0].split(",")]
        return float(numpy.interp(t, *zip(*points, strict=True)))
    numbers = [float(it) for it in numbers]
    if kind == "warmup":
        return min(1.0, (t + 1) / numbers[0])
    if kind == "ramp":
        return min(1.0, max(0.0, (t - numbers[0]) / (numbers[1] - numbers[0])))
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, t / numbers[0])))
    if kind == "decay":
        return math.exp(-t / numbers[0])
    if kind == "pulse":
        return float(t % numbers[0] < numbers[0] * numbers[1])
    raise ValueError(schedule)


def operate(h, vectors: list, op: str, alpha: float, strength):
    """The formulas, in fp32. `strength` is the schedule's factor, 0 for tokens left alone."""
    v = vectors[0]
    unit = v / v.norm()
    s = strength.float()
    a = (alpha * strength).float()
    along = (h * unit).sum(-1, keepdim=True)
    norm = h.norm(dim=-1, keepdim=True)
    if op == "add":
        return h + a * v
    if op == "add-unit":
        return h + a * unit
    if op == "add-relative":
        return h + a * norm * unit
    if op == "norm-preserve":
        g = h + a * v
        return g * norm / g.norm(dim=-1, keepdim=True)
    if op == "ablate":
        return h - s * along * unit
    if op == "ablate-partial":
        return h - a * along * unit
    if op == "ablate-add":
        return h - s * along * unit + a * v
    if op == "ablate-subspace":
        basis, _ = torch.linalg.qr(torch.stack(vectors).T)
        return h - s * (h @ basis @ basis.T)
    if op == "clamp":
        return h + s * (alpha - along) * unit
    if op == "cap-max":
        return h + s * (alpha - along).clamp(max=0) * unit
    if op == "cap-min":
        return h + s * (alpha - along).clamp(min=0) * unit
    if op == "rotate":
        u = v - (h @ v)[..., None] / norm**2 * h
        u = u * norm / u.norm(dim=-1, keepdim=True)
        return torch.cos(a) * h + torch.sin(a) * u
    if op == "replace":
        return torch.where(s > 0, v, h)
    raise ValueError(op)


# Extraction and other projects' files -------------------------------------------


def record_extraction(out: pathlib.Path) -> None:
    """Directions by NumPy's SVD, and a probe by Newton's method on its weights, from paired rows."""
    rng = numpy.random.default_rng(SEED + 5)
    cases = []
    for pairs, width, shift in ((2, 5, 1.0), (12, 8, 0.6), (9, 24, 1.5), (30, 16, 0.2)):
        common = rng.normal(size=(pairs, width)) * rng.uniform(0.2, 2.0, width)
        spread = rng.uniform(0.1, 1.2, width)
        positive = (common + rng.normal(size=(pairs, width)) * spread + shift * rng.normal(size=width)).round(4)
        negative = (common + rng.normal(size=(pairs, width)) * spread).round(4)
        found = directions(positive, negative)
        cases.append({
            "name": f"{pairs} pairs of {width}",
            "positive": positive.tolist(),
            "negative": negative.tolist(),
            "directions": {name: _fixture.rounded(vector) for name, (vector, _) in found.items()},
            "explained_variance": {name: round(share, 6) for name, (_, share) in found.items()},
        })  # fmt: skip
    _fixture.write_json(out / "directions.json", {"made_by": _fixture.made_by("numpy"), "cases": cases})


def directions(positive, negative) -> dict:
    difference = positive - negative
    half = difference / 2
    both = numpy.concatenate([positive, negative])

    def principal(rows):
        _, sizes, vectors = numpy.linalg.svd(rows, full_matrices=False)
        return vectors[0], sizes[0] ** 2 / (sizes**2).sum()

    def along(vector):
        unit = vector / numpy.linalg.norm(vector)
        return vector, ((difference @ unit) ** 2).sum() / (difference**2).sum()

    found = {
        "mean-diff": along(positive.mean(0) - negative.mean(0)),
        "pca-diff-centered": principal(difference - difference.mean(0)),
        "pca-diff-uncentered": principal(difference),
        "pca-pair-centered": principal(numpy.concatenate([half, -half])),
        "pca-global-centered": principal(both - both.mean(0)),
        "logistic-probe": along(unit_probe(half)),
    }
    signed = {}
    for name, (vector, share) in found.items():
        projections = difference @ vector
        ahead, behind = (projections > 0).sum(), (projections < 0).sum()
        flip = behind > ahead or (behind == ahead and projections.sum() < 0)
        signed[name] = (-vector if flip else vector, float(share))
    return signed


def unit_probe(half):
    """scikit-learn's LogisticRegression(C=1, fit_intercept=False) on rows and their negatives."""
    rows = numpy.concatenate([half, -half])
    labels = numpy.concatenate([numpy.ones(len(half)), -numpy.ones(len(half))])
    w = numpy.zeros(half.shape[1])
    for _ in range(200):
        chance = 1 / (1 + numpy.exp(labels * (rows @ w)))
        gradient = w - rows.T @ (labels * chance)
        hessian = numpy.eye(len(w)) + (rows.T * (chance * (1 - chance))) @ rows
        w = w - numpy.linalg.solve(hessian, gradient)
    return w / numpy.linalg.norm(w)


def record_files(out: pathlib.Path) -> None:
    """Steering files as other projects' tools write them; value `100 · layer + i` says where it belongs."""
    import json

    import mlx.core as mx

    def row(layer):
        return numpy.arange(4, dtype=numpy.float32) + 100 * layer

    out.mkdir(parents=True, exist_ok=True)
    named = {f"direction.{layer}": mx.array(row(layer)) for layer in (1, 2, 3)}
    facts = {"general.architecture": "controlvector", "controlvector.model_hint": "llama", "controlvector.layer_count": mx.array(3, mx.uint32)}
    mx.save_gguf(str(out / "repeng.gguf"), named, facts)
    # hidden_states[i] is the output of block i - 1.
    states = numpy.stack([numpy.full(4, -1, numpy.float32), *(row(layer) for layer in range(3))])
    numpy.savez(out / "persona.npz", states)
    numpy.save(out / "persona.npy", states.astype(numpy.float64))
    numpy.savez_compressed(out / "compressed.npz", states)
    svec = {"model_type": "llama", "directions": {str(layer): row(layer).tolist() for layer in (0, 2)}, "explained_variances": {"0": 0.5, "2": 0.25}}
    (out / "cast.svec").write_text(json.dumps(svec) + "\n")
