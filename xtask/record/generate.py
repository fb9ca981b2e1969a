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

import _small
import models
from _cases import GREEDY, HYBRIDS, MODELS, SAMPLE, ended, ends_of, record_models, settled, until_settled

NEW_TOKENS = 40
ONE, SHORT, LONG = (13,), (1,), (37,)
BATCH = (5, 37, 13)

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


# What the smaller models are asked for.
OF_SMALL = ("every warper", "batch")


def record(out: pathlib.Path) -> None:
    record_models(out, lambda model, _: cases_of(model, CASES), MODELS + HYBRIDS)
    few = [it for it in CASES if it[0] in OF_SMALL]
    record_models(out, lambda model, _: cases_of(model, few), _small.NAMES)


def cases_of(model, cases) -> dict:
    return {"cases": [record_case(model, CASES.index(it), it) for it in cases]}


def record_case(model, index: int, case: tuple) -> dict:
    return until_settled(f"{model.config.model_type}, {case[0]}", lambda attempt: try_case(model, [index, attempt], *case))


def try_case(model, draw: list[int], name: str, lengths: tuple[int, ...], config_of) -> dict:
    rng = numpy.random.default_rng(draw)
    prompts = [rng.integers(3, model.config.get_text_config().vocab_size, length).tolist() for length in lengths]
    seed = int(rng.integers(0, 2**32))
    plain_of = GREEDY if name.startswith("greedy") else SAMPLE
    plain = generate(model, prompts, seed, {**plain_of, "max_new_tokens": NEW_TOKENS})["rows"]
    said = [token for row in plain for token in row]
    if len(set(said[:24])) < 8:
        raise models.TooClose("a plain run that repeats itself")

    config = {"max_new_tokens": NEW_TOKENS, **config_of(said)}
    config = {key: value for key, value in config.items() if value is not None}
    found = settled(lambda: generate(model, prompts, seed, config), rng, model)
    if not name.endswith("*") and found["tokens"] == plain:
        raise models.TooClose("a config without effect")
    return {
        "name": name.rstrip("*"),
        "config": config,
        "seed": seed if config["do_sample"] else None,
        "prompts": prompts,
        "tokens": found["tokens"],
        "finish_reasons": found["finish_reasons"],
    }


def generate(model, prompts: list[list[int]], seed: int, config: dict) -> dict:
    """The new tokens of every returned sequence, with padding (`rows`) and up to their ends."""
    ids, mask = models.left_padded(prompts, config.get("pad_token_id", 0))
    torch.manual_seed(seed)
    sequences = model.generate(ids, attention_mask=mask, generation_config=GenerationConfig(**config))
    rows = sequences[:, ids.shape[1] :].tolist()
    return {"rows": rows, **ended(rows, ends_of(config))}
