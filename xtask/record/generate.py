"""Area `generate`: what `model.generate` returns under many generation configs, seeded on the CPU.

Each case is one call: a config under HF's field names, prompts, and the tokens that came back after
`torch.manual_seed(seed)`. Ids that a config names (end tokens, banned words, biases) are taken from
what the model says without it, so that every field has something to act on. A case is drawn again
while rounding could change it, or while its config changes nothing.
"""

import pathlib

import numpy
import torch
from transformers import GenerationConfig
from transformers.utils import logging

import _fixture
import _tiny
import models

MODELS = (
    "llama", "mistral", "qwen2", "qwen3", "qwen3-moe", "gemma", "gemma2", "gemma3", "phi3", "phi3-longrope-5x",
)  # fmt: skip
NEW_TOKENS = 40
# Tokens must not change when every logit moves by up to this much. Implementations differ by a
# tenth of it at most.
NOISE = 1e-4
EXPERT_GAP = 1e-5
# With a choice among many tokens, some draws come out the same whatever the config.
ATTEMPTS = 40

ONE, SHORT, LONG = (13,), (1,), (37,)
BATCH = (5, 37, 13)
SAMPLE = {"do_sample": True}
GREEDY = {"do_sample": False}

# Name, lengths of the prompts, and the config, given the ids of a plain run in the order said.
# A config that is meant to leave the tokens as they are has a name that ends in "*".
CASES = (
    ("defaults*", ONE, lambda said: SAMPLE),
    ("twenty tokens by default*", SHORT, lambda said: {**SAMPLE, "max_new_tokens": None}),
    ("max_length*", ONE, lambda said: {**SAMPLE, "max_new_tokens": None, "max_length": 30}),
    ("no top-k*", LONG, lambda said: {**SAMPLE, "top_k": 0}),
    ("top-k", ONE, lambda said: {**SAMPLE, "top_k": 3}),
    ("top-p", LONG, lambda said: {**SAMPLE, "top_k": 0, "top_p": 0.6}),
    ("temperature, top-k, top-p", SHORT, lambda said: {**SAMPLE, "temperature": 0.6, "top_k": 12, "top_p": 0.9}),
    ("hot", ONE, lambda said: {**SAMPLE, "temperature": 2.5, "top_k": 0}),
    ("min-p", ONE, lambda said: {**SAMPLE, "top_k": 0, "min_p": 0.12, "temperature": 1.4}),
    ("typical", LONG, lambda said: {**SAMPLE, "top_k": 0, "typical_p": 0.5}),
    ("epsilon", ONE, lambda said: {**SAMPLE, "top_k": 0, "epsilon_cutoff": 0.08}),
    ("eta", ONE, lambda said: {**SAMPLE, "top_k": 0, "eta_cutoff": 0.2}),
    ("top-h", SHORT, lambda said: {**SAMPLE, "top_k": 0, "top_h": 0.4}),
    ("every warper", ONE, lambda said: {
        **SAMPLE, "temperature": 1.7, "top_h": 0.95, "top_k": 40, "top_p": 0.97, "min_p": 0.01, "typical_p": 0.96,
        "epsilon_cutoff": 0.002, "eta_cutoff": 0.003}),
    ("renormalize", ONE, lambda said: {**SAMPLE, "top_k": 8, "temperature": 1.3, "renormalize_logits": True}),
    ("repetition penalty", LONG, lambda said: {**SAMPLE, "repetition_penalty": 1.4}),
    ("encoder repetition penalty", ONE, lambda said: {**SAMPLE, "encoder_repetition_penalty": 1.3}),
    ("no repeated bigram", ONE, lambda said: {**SAMPLE, "temperature": 0.5, "no_repeat_ngram_size": 2}),
    ("bad words", ONE, lambda said: {**SAMPLE, "bad_words_ids": [[said[3]], said[6:8], [said[11]]]}),
    ("sequence bias", ONE, lambda said: {
        **SAMPLE, "sequence_bias": [[[said[2]], -4.0], [[said[9]], 2.5], [said[14:16], -6.0], [[said[9], said[0]], 5.0]]}),
    ("suppressed tokens", ONE, lambda said: {
        **SAMPLE, "suppress_tokens": [said[5], said[12]], "begin_suppress_tokens": [said[0], said[1]]}),
    ("several returned", ONE, lambda said: {
        **SAMPLE, "num_return_sequences": 4, "eos_token_id": [said[17], said[8]], "pad_token_id": 0}),
    ("minimum of new tokens", ONE, lambda said: {
        **SAMPLE, "min_new_tokens": 14, "eos_token_id": [said[4], said[19]], "pad_token_id": 0}),
    ("batch", BATCH, lambda said: {**SAMPLE, "eos_token_id": [said[25], said[60], said[100]], "pad_token_id": 0}),
    ("batch, several returned", BATCH, lambda said: {
        **SAMPLE, "top_p": 0.85, "num_return_sequences": 3, "eos_token_id": said[15], "pad_token_id": 0}),
    ("batch, penalties", BATCH, lambda said: {
        **SAMPLE, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "temperature": 0.9, "pad_token_id": 0}),
    ("batch, everything", BATCH, lambda said: {
        **SAMPLE, "temperature": 1.2, "top_k": 30, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.1,
        "no_repeat_ngram_size": 4, "bad_words_ids": [said[3:5]], "sequence_bias": [[[said[50]], 1.5]],
        "min_new_tokens": 6, "suppress_tokens": [said[90]], "exponential_decay_length_penalty": [10, 1.05],
        "eos_token_id": [said[25], said[60]], "pad_token_id": 0, "num_return_sequences": 2}),
    ("greedy, repetition penalty", ONE, lambda said: {**GREEDY, "repetition_penalty": 1.3}),
    ("greedy, penalty below one", LONG, lambda said: {**GREEDY, "repetition_penalty": 0.8}),
    ("greedy, no repeated trigram", LONG, lambda said: {**GREEDY, "no_repeat_ngram_size": 3}),
    ("greedy, no repeated token", ONE, lambda said: {**GREEDY, "no_repeat_ngram_size": 1}),
    ("greedy, encoder n-grams", LONG, lambda said: {
        **GREEDY, "encoder_no_repeat_ngram_size": 1, "encoder_repetition_penalty": 0.9}),
    ("greedy, bad words and bias", ONE, lambda said: {
        **GREEDY, "bad_words_ids": [said[1:3], [said[7]]], "sequence_bias": [[[said[20]], 3.0], [said[4:6], -9.0]]}),
    ("greedy, end tokens", ONE, lambda said: {**GREEDY, "eos_token_id": [said[12], said[30]], "pad_token_id": 0}),
    ("greedy, minimum length", ONE, lambda said: {
        **GREEDY, "min_length": 25, "eos_token_id": said[6], "pad_token_id": 0}),
    ("greedy, decay towards the end", ONE, lambda said: {
        **GREEDY, "exponential_decay_length_penalty": [4, 1.2], "eos_token_id": [said[33]], "pad_token_id": 0}),
    ("greedy, forced end", SHORT, lambda said: {
        **GREEDY, "max_new_tokens": 15, "forced_eos_token_id": [said[2]], "eos_token_id": said[2],
        "suppress_tokens": [next(it for it in said[4:] if it != said[2])], "begin_suppress_tokens": [said[0]], "min_new_tokens": 14, "pad_token_id": 0}),
    ("greedy, batch", BATCH, lambda said: {
        **GREEDY, "repetition_penalty": 1.15, "no_repeat_ngram_size": 4, "eos_token_id": [said[20], said[70]],
        "pad_token_id": 0}),
)  # fmt: skip


def record(out: pathlib.Path) -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    folder = out.parent / "models"
    for name in MODELS:
        if not (folder / name).is_dir():
            raise SystemExit(f"{folder / name} is missing; record the area models first")
        model = _tiny.load(folder / name)
        cases = [record_case(model, index, *case) for index, case in enumerate(CASES)]
        recorded = {
            "made_by": _fixture.made_by("torch", "transformers"),
            "model": f"../models/{name}",
            "cases": cases,
        }
        _fixture.write_json(out / f"{name}.json", recorded, lines_to=2)


def record_case(model, index: int, name: str, lengths: tuple[int, ...], config_of) -> dict:
    for attempt in range(ATTEMPTS):
        try:
            return try_case(model, [index, attempt], name, lengths, config_of)
        except models.TooClose as reason:
            last = reason
    raise SystemExit(f"{model.config.model_type}, {name}: {last}, {ATTEMPTS} times")


def try_case(model, draw: list[int], name: str, lengths: tuple[int, ...], config_of) -> dict:
    rng = numpy.random.default_rng(draw)
    prompts = [rng.integers(3, model.config.vocab_size, length).tolist() for length in lengths]
    seed = int(rng.integers(0, 2**32))
    plain_of = GREEDY if name.startswith("greedy") else SAMPLE
    plain = generate(model, prompts, seed, {**plain_of, "max_new_tokens": NEW_TOKENS})
    said = [token for row in plain for token in row]
    if len(set(said[:24])) < 8:
        raise models.TooClose("a plain run that repeats itself")

    config = {"max_new_tokens": NEW_TOKENS, **config_of(said)}
    config = {key: value for key, value in config.items() if value is not None}
    with models.expert_gaps() as gaps:
        rows = generate(model, prompts, seed, config)
    if gaps and min(gaps) < EXPERT_GAP:
        raise models.TooClose("two experts too near")
    with noisy(model, rng):
        if generate(model, prompts, seed, config) != rows:
            raise models.TooClose("tokens that rounding could change")
    ends = config.get("eos_token_id", [])
    ends = ends if isinstance(ends, list) else [ends]
    tokens = [models.until_end(row, ends) for row in rows]
    if not name.endswith("*") and tokens == plain:
        raise models.TooClose("a config without effect")
    return {
        "name": name.rstrip("*"),
        "config": config,
        "seed": seed if config["do_sample"] else None,
        "prompts": prompts,
        "tokens": tokens,
        "finish_reasons": ["eos" if row[-1] in ends else "length" for row in tokens],
    }


def generate(model, prompts: list[list[int]], seed: int, config: dict) -> list[list[int]]:
    """The new tokens of every returned sequence, padding included."""
    ids, mask = models.left_padded(prompts, config.get("pad_token_id", 0))
    torch.manual_seed(seed)
    sequences = model.generate(ids, attention_mask=mask, generation_config=GenerationConfig(**config))
    return sequences[:, ids.shape[1] :].tolist()


class noisy:
    """While open, every logit of the model is off by a little."""

    def __init__(self, model, rng):
        self.model, self.rng = model, rng

    def __enter__(self):
        self.handle = self.model.register_forward_hook(self.shake)

    def __exit__(self, *_):
        self.handle.remove()

    def shake(self, _module, _inputs, output):
        noise = self.rng.uniform(-NOISE, NOISE, tuple(output.logits.shape))
        output.logits = output.logits + torch.from_numpy(noise.astype(numpy.float32))
        return output
