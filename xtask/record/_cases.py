"""What the areas have in common whose cases are calls of `model.generate`.

A case is drawn again while rounding could change it, or while it does not show what it is there for.
"""

import contextlib
import pathlib

import numpy
import torch
from transformers.utils import logging

import _fixture
import _tiny
import models

MODELS = (
    "llama", "mistral", "qwen2", "qwen3", "qwen3-moe", "gemma", "gemma2", "gemma3", "phi3", "phi3-longrope-5x",
)  # fmt: skip
# transformers generates with these, but refuses them a helper: it cannot take a recurrence back.
HYBRIDS = ("qwen3_5", "qwen3_5-moe", "qwen3-next")
SAMPLE = {"do_sample": True}
GREEDY = {"do_sample": False}
# Tokens must not change when every logit moves by up to this much. Implementations differ by a
# tenth of it at most.
NOISE = 1e-4
# One draw of such moves leaves every other tie as it was.
SHAKES = 6
EXPERT_GAP = 1e-5
# With a choice among many tokens, some draws come out the same whatever the config.
ATTEMPTS = 40


def record_models(out: pathlib.Path, cases_of, names=MODELS, prefix="") -> None:
    """Writes a file per tiny model. `cases_of(model, name)` makes its fields beside the model's."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    folder = out.parent / "models"
    for name in names:
        if not (folder / name).is_dir():
            raise SystemExit(f"{folder / name} is missing; record the area models first")
        recorded = {
            "made_by": _fixture.made_by("torch", "transformers"),
            "model": f"../models/{name}",
            **cases_of(_tiny.load(folder / name), name),
        }
        _fixture.write_json(out / f"{prefix}{name}.json", recorded, lines_to=2)


def until_settled(what: str, attempt) -> dict:
    """The first draw of a case that stands: `attempt(number)` raises `TooClose` for one that does not."""
    for number in range(ATTEMPTS):
        try:
            return attempt(number)
        except models.TooClose as reason:
            last = reason
    raise SystemExit(f"{what}: {last}, {ATTEMPTS} times")


def settled(run, rng, *noisy_models) -> dict:
    """What `run()` gives, if neither an expert nor a token is nearly a tie, nor a beam with its neighbour."""
    with models.expert_gaps() as gaps:
        found = run()
    if gaps and min(gaps) < EXPERT_GAP:
        raise models.TooClose("two experts too near")
    with contextlib.ExitStack() as stack:
        for model in noisy_models:
            stack.enter_context(noisy(model, rng))
        for _ in range(SHAKES):
            again = run()
            for field in ("tokens", "beam_indices", "passes"):
                if again.get(field) != found.get(field):
                    raise models.TooClose(f"{field} that rounding could change")
    return found


class noisy:
    """While open, every logit of the model, or of its head alone, is off by a little."""

    def __init__(self, model, rng):
        self.model, self.rng = model, rng

    def __enter__(self):
        self.handle = self.model.register_forward_hook(self.shake)

    def __exit__(self, *_):
        self.handle.remove()

    def shake(self, _module, _inputs, output):
        logits = output if isinstance(output, torch.Tensor) else output.logits
        noise = self.rng.uniform(-NOISE, NOISE, tuple(logits.shape))
        logits = logits + torch.from_numpy(noise.astype(numpy.float32))
        if isinstance(output, torch.Tensor):
            return logits
        output.logits = logits
        return output


def ends_of(config: dict) -> list[int]:
    """The end tokens of a config."""
    ends = config.get("eos_token_id", [])
    return ends if isinstance(ends, list) else [ends]


def ended(rows: list[list[int]], ends: list[int]) -> dict:
    """Rows of new tokens up to their end token, and why they end."""
    tokens = [models.until_end(row, ends) for row in rows]
    return {"tokens": tokens, "finish_reasons": ["eos" if row[-1] in ends else "length" for row in tokens]}
