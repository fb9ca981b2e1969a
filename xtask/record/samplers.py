"""What transformers' warpers keep, and what torch draws.

Scores are not stored: both sides make them from `torch.rand` under a seed, with steps that round
the same everywhere. What a warper leaves is stored as a count and a hash of ids and score bits.
"""

import itertools
import pathlib
import random

import numpy
import torch
from transformers.generation import logits_process as hf

import _fixture

VOCABS = [8, 15, 16, 17, 33, 100, 101, 1000, 5003, 32000, 50257, 151936]

# (shape, scale, share of banned tokens)
SHAPES = [
    ("bell", 2.0, 0.0),
    ("bell", 6.0, 0.3),
    ("bell", 12.0, 0.0),
    ("heavy", 2.0, 0.1),
    ("heavy", 6.0, 0.0),
    ("bell", 6.0, 0.97),
]

WARPERS = {
    "temperature": (hf.TemperatureLogitsWarper, [0.1, 0.7, 1.5]),
    "top_h": (hf.TopHLogitsWarper, [0.1, 0.4, 0.9, 1.0]),
    "top_k": (hf.TopKLogitsWarper, [1, 5, 50, 1000]),
    "top_p": (hf.TopPLogitsWarper, [0.0, 0.3, 0.9, 0.95, 0.999]),
    "min_p": (hf.MinPLogitsWarper, [0.0, 0.02, 0.1, 0.5, 1.0]),
    "typical_p": (hf.TypicalLogitsWarper, [0.1, 0.5, 0.9, 0.99]),
    "epsilon_cutoff": (hf.EpsilonLogitsWarper, [3e-5, 3e-4, 0.01, 0.3]),
    "eta_cutoff": (hf.EtaLogitsWarper, [3e-4, 4e-3, 0.1]),
}

# In HF's order; the last has everything on.
CHAINS = [
    {"temperature": 0.7, "top_k": 50, "top_p": 0.9},
    {"temperature": 0.8, "top_p": 0.95},
    {"temperature": 1.5, "min_p": 0.05},
    {"top_k": 50},
    {"top_k": 20, "typical_p": 0.5},
    {"temperature": 0.3, "top_k": 40, "typical_p": 0.5, "eta_cutoff": 0.1},
    {"top_k": 100, "eta_cutoff": 0.01},
    {"top_p": 0.8, "epsilon_cutoff": 0.001},
    {"typical_p": 0.7, "eta_cutoff": 0.002},
    {"top_h": 0.6, "top_p": 0.7},
    {
        "temperature": 1.3,
        "top_h": 0.9,
        "top_k": 60,
        "top_p": 0.98,
        "min_p": 0.005,
        "typical_p": 0.9,
        "epsilon_cutoff": 0.0003,
        "eta_cutoff": 0.004,
    },
]


def record(out: pathlib.Path) -> None:
    torch.set_num_threads(1)
    made_by = _fixture.made_by("torch", "transformers")
    for name, cases in [
        ("warpers", warper_cases()),
        ("ties", tie_cases()),
        ("draws", draw_cases()),
        ("several", several_cases()),
        ("generator", generator_cases()),
    ]:
        _fixture.write_json(out / f"{name}.json", {"made_by": made_by, "cases": list(cases)})


def make_scores(seed: int, rows: int, vocab: int, shape: str, scale: float, banned: float) -> torch.Tensor:
    """Scores of a given shape; a sum of four uniform numbers is close to a normal one."""
    draws = torch.rand(5, rows, vocab, generator=torch.Generator().manual_seed(seed))
    bell = draws[0] + draws[1] + draws[2] + draws[3] - 2.0
    shaped = {"bell": bell, "heavy": bell * bell * bell, "steps": torch.floor(bell * 4.0)}[shape]
    scores = shaped * scale
    return scores.masked_fill(draws[4] < banned, -torch.inf)


def spec(seed: int, rows: int, vocab: int, shape: tuple) -> dict:
    return {"seed": seed, "rows": rows, "vocab": vocab, "shape": shape[0], "scale": shape[1], "banned": shape[2]}


def warp(warpers: dict, keep: int, scores: torch.Tensor) -> torch.Tensor:
    for name, value in warpers.items():
        options = {} if name in ("temperature", "top_h") else {"min_tokens_to_keep": keep}
        scores = WARPERS[name][0](value, **options)(None, scores)
    return scores


def kept(row: torch.Tensor) -> list:
    """How many tokens a row keeps, and a hash of their ids and scores."""
    row = row.numpy()
    ids = numpy.flatnonzero(row > -numpy.inf).astype(numpy.uint64)
    bits = row[row > -numpy.inf].view(numpy.uint32).astype(numpy.uint64)
    return [len(ids), digest(ids, bits)]


def digest(keys: numpy.ndarray, values: numpy.ndarray) -> str:
    """A hash of pairs of 32-bit numbers that does not depend on their order."""
    mixed = (keys << numpy.uint64(32) | values) * numpy.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> numpy.uint64(29)
    return f"{int((mixed * mixed).sum(dtype=numpy.uint64)):016x}"


def tied(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether equal scores fell on both sides of a cut, where the order of torch's sort decides."""
    for old, new in zip(before, after):
        survives = new > -torch.inf
        if numpy.isin(old[survives].numpy(), old[~survives & (old > -torch.inf)].numpy()).any():
            return True
    return False


def warper_cases():
    seeds = itertools.count(1)
    rng = random.Random(7)
    chains = [{name: value} for name, (_, values) in WARPERS.items() for value in values] + CHAINS
    for vocab, warpers in itertools.product(VOCABS, chains):
        shapes = rng.sample(SHAPES, 2 if vocab < 32000 else 1)
        for shape in shapes:
            rows = rng.choice([1, 2, 3]) if vocab < 32000 else 1
            keep = rng.choice([1, 1, 1, 2, 5])
            while True:
                scores = spec(next(seeds), rows, vocab, shape)
                before = make_scores(**scores)
                if (before == -torch.inf).all(-1).any():
                    continue
                after = warp(warpers, keep, before)
                if not tied(before, after):
                    break
            yield {"warpers": warpers, "keep": keep, "scores": scores, "kept": [kept(row) for row in after]}


def tie_cases():
    """Cuts through equal scores: which of them are kept is the order in which torch's sort leaves them."""
    seeds = itertools.count(5001)
    chains = [
        {"top_p": 0.3},
        {"top_p": 0.9},
        {"typical_p": 0.5},
        {"top_h": 0.4},
        {"top_h": 0.9},
        {"temperature": 0.7, "top_k": 50, "top_p": 0.8},
        {"top_p": 0.7, "typical_p": 0.9},
    ]
    for vocab, warpers, (scale, banned) in itertools.product(VOCABS, chains, [(0.1, 0.0), (0.7, 0.3), (0.0, 0.0)]):
        for keep in (1, 3):
            for _ in range(50):
                scores = spec(next(seeds), 1, vocab, ("steps", scale, banned))
                before = make_scores(**scores)
                if (before == -torch.inf).all(-1).any():
                    continue
                after = warp(warpers, keep, before)
                if tied(before, after):
                    yield {"warpers": warpers, "keep": keep, "scores": scores, "kept": [kept(row) for row in after]}
                    break
    # By probability, of which equals are also those that are too small for fp32 and the banned.
    seeds = itertools.count(9001)
    chains = [{"min_p": 0.3}, {"temperature": 0.4, "min_p": 0.99}, {"top_k": 40, "min_p": 1.0}]
    for vocab, warpers, (scale, banned) in itertools.product(VOCABS, chains, [(0.7, 0.0), (2.0, 0.3), (500.0, 0.5)]):
        keep = 2 + vocab % 4
        for _ in range(50):
            scores = spec(next(seeds), 1, vocab, ("steps", scale, banned))
            before = make_scores(**scores)
            if (before > -torch.inf).sum() < keep:
                continue
            after = warp(warpers, keep, before)
            if tied(before, after) or (after > -torch.inf).sum() < keep:
                yield {"warpers": warpers, "keep": keep, "scores": scores, "kept": [kept(row) for row in after]}
                break


def draw_cases():
    """One token per row and step, the rows sharing the global generator, as in `_sample`."""
    plans = [(32, 4, 2000), (101, 3, 1500), (1000, 4, 1000), (32000, 2, 40), (50257, 2, 20), (151936, 2, 12)]
    chains = [{}, {"temperature": 0.7}, CHAINS[0], CHAINS[1], CHAINS[2], {"typical_p": 0.9}, {"eta_cutoff": 0.002}]
    for number, ((vocab, rows, steps), warpers) in enumerate(itertools.product(plans, chains)):
        shape = SHAPES[number % 5]
        scores = spec(1000 + number, rows, vocab, shape)
        probs = torch.softmax(warp(warpers, 1, make_scores(**scores)), dim=-1)
        seed = 77_000_000_000 + number
        torch.manual_seed(seed)
        tokens = torch.stack([torch.multinomial(probs, num_samples=1).squeeze(1) for _ in range(steps)])
        yield {"warpers": warpers, "keep": 1, "scores": scores, "seed": seed, **drawn(tokens)}


def several_cases():
    """Several tokens per draw, without replacement, as in beam sampling."""
    for number, (vocab, count) in enumerate(itertools.product([24, 100, 5003, 4 * 32000], [2, 8])):
        scores = spec(2000 + number, 1, vocab, SHAPES[number % 3])
        probs = torch.softmax(make_scores(**scores), dim=-1)
        seed = 5 + number
        torch.manual_seed(seed)
        tokens = torch.stack([torch.multinomial(probs, num_samples=count)[0] for _ in range(20)])
        yield {"warpers": {}, "keep": 1, "scores": scores, "seed": seed, **drawn(tokens)}


def drawn(tokens: torch.Tensor) -> dict:
    """The first steps' tokens, to see a difference by, and a hash of all (steps by tokens)."""
    values = tokens.reshape(-1).numpy().astype(numpy.uint64)
    places = numpy.arange(len(values), dtype=numpy.uint64)
    return {"first": tokens[:5].tolist(), "steps": len(tokens), "hash": digest(places, values)}


def generator_cases():
    """The generator's own draws, as hashes of their bits."""
    kinds = {
        "rand": lambda n: torch.rand(n),
        "exponential": lambda n: torch.empty(1, n).exponential_(1),
        "randperm": lambda n: torch.randperm(n).to(torch.int32),
        "randint": lambda n: torch.randint(n, (300,)).to(torch.int32),
    }
    sizes = [1, 7, 15, 16, 17, 1000, 151936, 1_000_000]
    for seed, (kind, size) in enumerate(itertools.product(kinds, sizes)):
        torch.manual_seed(seed)
        words = kinds[kind](size).reshape(-1).numpy().view(numpy.uint32).astype(numpy.uint64)
        places = numpy.arange(len(words), dtype=numpy.uint64)
        yield {"kind": kind, "size": size, "seed": seed, "hash": digest(places, words)}
