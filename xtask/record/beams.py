"""Area `beams`: what `model.generate` returns with `num_beams`, searched and drawn.

Cases are made as in the area `generate`, and drawn again for the same reasons. Besides the tokens
they hold the scores and the beam indices of the returned sequences.
"""

import pathlib

import numpy
import torch
from transformers import GenerationConfig

import _fixture
import _small
import models
from _cases import HYBRIDS, MODELS, ends_of, record_models, settled, until_settled

NEW_TOKENS = 18
ONE, SHORT, LONG = (13,), (1,), (37,)
BATCH = (5, 37, 13)
SEARCH = {"do_sample": False}
DRAW = {"do_sample": True}
ENDS = {"pad_token_id": 0}
# The fields whose effect shows in any case.
BARE = ("do_sample", "num_beams", "num_return_sequences", "max_new_tokens")

# Name, lengths of the prompts, and the config, given the ids of a plain search in the order said.
# A config that is meant to leave the tokens as they are has a name that ends in "*".
CASES = (
    ("no end token*", ONE, lambda said: {**SEARCH, "num_beams": 3}),
    ("one returned of two", SHORT, lambda said: {**SEARCH, "num_beams": 2, "eos_token_id": said[4], **ENDS}),
    ("end token", ONE, lambda said: {
        **SEARCH, "num_beams": 4, "num_return_sequences": 4, "eos_token_id": said[7], **ENDS}),
    ("five beams, three end tokens", LONG, lambda said: {
        **SEARCH, "num_beams": 5, "num_return_sequences": 5, "eos_token_id": [said[9], said[20], said[31]], **ENDS}),
    ("early stopping", ONE, lambda said: {
        **SEARCH, "num_beams": 3, "num_return_sequences": 3, "early_stopping": True, "eos_token_id": [said[5], said[14]],
        **ENDS}),
    ("never stopping early", ONE, lambda said: {
        **SEARCH, "num_beams": 3, "num_return_sequences": 3, "early_stopping": "never", "eos_token_id": [said[5], said[14]],
        **ENDS}),
    ("never stopping early, no length penalty", LONG, lambda said: {
        **SEARCH, "num_beams": 3, "num_return_sequences": 2, "early_stopping": "never", "length_penalty": 0.0,
        "eos_token_id": said[6], **ENDS}),
    ("long preferred", ONE, lambda said: {
        **SEARCH, "num_beams": 4, "num_return_sequences": 3, "length_penalty": 2.0, "eos_token_id": [said[3], said[12]],
        **ENDS}),
    ("short preferred", ONE, lambda said: {
        **SEARCH, "num_beams": 4, "num_return_sequences": 3, "length_penalty": -0.4, "eos_token_id": [said[3], said[12]],
        **ENDS}),
    ("a fraction of the length", SHORT, lambda said: {
        **SEARCH, "num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.6, "early_stopping": True,
        "eos_token_id": said[8], **ENDS}),
    ("many beams", SHORT, lambda said: {
        **SEARCH, "num_beams": 12, "num_return_sequences": 6, "eos_token_id": said[5], **ENDS}),
    ("batch", BATCH, lambda said: {
        **SEARCH, "num_beams": 4, "num_return_sequences": 2, "eos_token_id": [said[11], said[40]], **ENDS}),
    ("batch, early stopping", BATCH, lambda said: {
        **SEARCH, "num_beams": 3, "num_return_sequences": 3, "early_stopping": True,
        "eos_token_id": [said[2], said[21], said[44]], **ENDS}),
    ("repetition penalty", LONG, lambda said: {
        **SEARCH, "num_beams": 3, "num_return_sequences": 3, "repetition_penalty": 1.3}),
    ("no repeated bigram", ONE, lambda said: {
        **SEARCH, "num_beams": 4, "num_return_sequences": 2, "no_repeat_ngram_size": 2, "eos_token_id": said[10], **ENDS}),
    ("minimum of new tokens", ONE, lambda said: {
        **SEARCH, "num_beams": 3, "num_return_sequences": 3, "min_new_tokens": 9, "eos_token_id": [said[4], said[13]],
        **ENDS}),
    ("bias, bad words, suppressed tokens", ONE, lambda said: {
        **SEARCH, "num_beams": 3, "num_return_sequences": 3, "sequence_bias": [[[said[2]], -2.0], [[said[30]], 1.5]],
        "bad_words_ids": [said[6:8], [said[9]]], "suppress_tokens": [said[15]]}),
    ("forced end", ONE, lambda said: {
        **SEARCH, "num_beams": 3, "num_return_sequences": 3, "forced_eos_token_id": said[3], "eos_token_id": said[3],
        "max_new_tokens": 10, "min_new_tokens": 9, **ENDS}),
    ("renormalize", ONE, lambda said: {
        **SEARCH, "num_beams": 3, "num_return_sequences": 3, "no_repeat_ngram_size": 1, "renormalize_logits": True}),
    ("decay towards the end", LONG, lambda said: {
        **SEARCH, "num_beams": 3, "num_return_sequences": 2, "exponential_decay_length_penalty": [3, 1.3],
        "eos_token_id": said[33], **ENDS}),
    ("draws*", ONE, lambda said: {**DRAW, "num_beams": 3, "num_return_sequences": 3}),
    ("draws, end tokens", ONE, lambda said: {
        **DRAW, "num_beams": 4, "num_return_sequences": 4, "eos_token_id": [said[7], said[22]], **ENDS}),
    ("draws, hot, no top-k", LONG, lambda said: {
        **DRAW, "num_beams": 2, "num_return_sequences": 2, "top_k": 0, "temperature": 1.8, "eos_token_id": said[3], **ENDS}),
    ("draws among few", ONE, lambda said: {
        **DRAW, "num_beams": 4, "num_return_sequences": 4, "top_k": 3, "eos_token_id": said[9], **ENDS}),
    ("draws, top-p", SHORT, lambda said: {
        **DRAW, "num_beams": 3, "num_return_sequences": 2, "top_k": 0, "top_p": 0.7, "length_penalty": 0.5,
        "eos_token_id": [said[6], said[19]], **ENDS}),
    ("draws, every warper", ONE, lambda said: {
        **DRAW, "num_beams": 3, "num_return_sequences": 3, "temperature": 1.4, "top_h": 0.95, "top_k": 40, "top_p": 0.97,
        "min_p": 0.01, "typical_p": 0.96, "epsilon_cutoff": 0.002, "eta_cutoff": 0.003, "renormalize_logits": True,
        "eos_token_id": said[12], **ENDS}),
    ("draws, early stopping", ONE, lambda said: {
        **DRAW, "num_beams": 3, "num_return_sequences": 3, "early_stopping": True, "eos_token_id": [said[4], said[11], said[25]],
        **ENDS}),
    ("draws, batch", BATCH, lambda said: {
        **DRAW, "num_beams": 3, "num_return_sequences": 2, "temperature": 0.8, "early_stopping": True,
        "eos_token_id": [said[11], said[40]], **ENDS}),
    ("draws, batch, penalties", BATCH, lambda said: {
        **DRAW, "num_beams": 2, "num_return_sequences": 2, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3,
        "early_stopping": "never", "eos_token_id": said[18], **ENDS}),
)  # fmt: skip


# With guidance, in files of their own, `guided-*.json`. The rows that are guided away from do not move along with
# the beams: a second row reads whatever stands last in its place.
GUIDED = (
    ("guidance", ONE, lambda said: {**SEARCH, "num_beams": 3, "num_return_sequences": 3, "guidance_scale": 1.6}),
    ("guidance below one, end tokens", ONE, lambda said: {
        **SEARCH, "num_beams": 4, "num_return_sequences": 2, "guidance_scale": 0.5,
        "eos_token_id": [said[5], said[14]], **ENDS}),
    ("guidance, batch, early stopping", BATCH, lambda said: {
        **SEARCH, "num_beams": 3, "num_return_sequences": 2, "guidance_scale": 1.4, "early_stopping": True,
        "eos_token_id": [said[2], said[21], said[44]], **ENDS}),
    ("guidance, penalties", LONG, lambda said: {
        **SEARCH, "num_beams": 2, "num_return_sequences": 2, "guidance_scale": 2.0, "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 2}),
    ("guidance, negative prompt", ONE, lambda said: {
        **SEARCH, "num_beams": 3, "num_return_sequences": 2, "guidance_scale": 1.5, "eos_token_id": said[7], **ENDS}),
    ("draws, guidance", ONE, lambda said: {
        **DRAW, "num_beams": 3, "num_return_sequences": 3, "guidance_scale": 1.3, "eos_token_id": said[9], **ENDS}),
    ("draws, guidance, batch", BATCH, lambda said: {
        **DRAW, "num_beams": 2, "num_return_sequences": 2, "guidance_scale": 1.5, "temperature": 0.8,
        "eos_token_id": [said[11], said[40]], **ENDS}),
)  # fmt: skip

# What the smaller models are asked for.
OF_SMALL = ("early stopping",)

# Several forced ends leave sequences of equal scores, of which the order in torch's `topk` decides. In files of their
# own, `tied-*.json`.
TIED_MODELS = ("llama", "gemma2")
TIED = (
    ("two forced ends", ONE, lambda said: {
        **SEARCH, "num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 3, "forced_eos_token_id": distinct(said, 2),
        "eos_token_id": said[9], **ENDS}),
    ("three forced ends, batch", BATCH, lambda said: {
        **SEARCH, "num_beams": 6, "num_return_sequences": 5, "max_new_tokens": 2, "forced_eos_token_id": distinct(said, 3),
        "eos_token_id": distinct(said[9:], 2), **ENDS}),
    ("many forced ends, early stopping", SHORT, lambda said: {
        **SEARCH, "num_beams": 5, "num_return_sequences": 5, "max_new_tokens": 4, "early_stopping": True,
        "length_penalty": 0.0, "forced_eos_token_id": distinct(said, 6), **ENDS}),
)  # fmt: skip


def distinct(said: list[int], count: int) -> list[int]:
    """The first different ids."""
    return list(dict.fromkeys(said))[:count]


def record(out: pathlib.Path) -> None:
    record_models(out, lambda model, _: cases_of(model, CASES), MODELS + HYBRIDS)
    # Guidance reads the two texts in one batch, which longrope makes another reading.
    names = [it for it in MODELS if "longrope" not in it]
    record_models(out, lambda model, _: cases_of(model, GUIDED), names, prefix="guided-")
    record_models(out, lambda model, _: cases_of(model, TIED), TIED_MODELS, prefix="tied-")
    few = [it for it in CASES if it[0] in OF_SMALL]
    record_models(out, lambda model, _: cases_of(model, few), _small.NAMES)


def cases_of(model, cases) -> dict:
    return {"cases": [record_case(model, (CASES + GUIDED + TIED).index(it), it) for it in cases]}


def record_case(model, index: int, case: tuple) -> dict:
    return until_settled(f"{model.config.model_type}, {case[0]}", lambda attempt: try_case(model, [index, attempt], *case))


def try_case(model, draw: list[int], name: str, lengths: tuple[int, ...], config_of) -> dict:
    rng = numpy.random.default_rng([*draw, 4])
    prompts = [rng.integers(3, model.config.get_text_config().vocab_size, length).tolist() for length in lengths]
    seed = int(rng.integers(0, 2**32))
    plain = {"do_sample": name.startswith("draws"), "num_beams": 3, "num_return_sequences": 3}
    plain = generate(model, prompts, seed, {**plain, "max_new_tokens": NEW_TOKENS})["tokens"]
    said = [token for row in plain for token in row]
    if len(set(said[:18])) < 7:
        raise models.TooClose("a plain search that repeats itself")

    config = {"max_new_tokens": NEW_TOKENS, **config_of(said)}
    negative = rng.integers(3, model.config.vocab_size, 7).tolist() if "negative" in name else None
    found = settled(lambda: generate(model, prompts, seed, config, negative), rng, model)
    bare = {key: config[key] for key in BARE if key in config}
    if not name.endswith("*") and generate(model, prompts, seed, bare)["tokens"] == found["tokens"]:
        raise models.TooClose("a config without effect")
    return {
        "name": name.rstrip("*"),
        "config": config,
        "seed": seed if config["do_sample"] else None,
        "prompts": prompts,
        **({} if negative is None else {"negative_prompts": [negative]}),
        **found,
    }


def generate(model, prompts: list[list[int]], seed: int, config: dict, negative: list[int] | None = None) -> dict:
    """The returned sequences: new tokens without padding, scores, beam indices, reasons."""
    ids, mask = models.left_padded(prompts, config.get("pad_token_id", 0))
    kwargs = {}
    if negative is not None:
        # transformers repeats prompts for the beams, but not these.
        kwargs["negative_prompt_ids"] = torch.tensor([negative] * len(prompts) * config["num_beams"])
    torch.manual_seed(seed)
    out = model.generate(
        ids, attention_mask=mask, generation_config=GenerationConfig(**config), return_dict_in_generate=True,
        output_scores=True, **kwargs,
    )  # fmt: skip
    return described(out, ids.shape[1], ends_of(config))


def described(out, prompt_len: int, ends: list[int]) -> dict:
    """A beam search's output as the fixtures hold it."""
    beams = [[it for it in row if it >= 0] for row in out.beam_indices.tolist()]
    rows = [row[: len(beam)] for row, beam in zip(out.sequences[:, prompt_len:].tolist(), beams)]
    return {
        "tokens": rows,
        "scores": _fixture.rounded(out.sequences_scores),
        "beam_indices": beams,
        "finish_reasons": ["eos" if row[-1] in ends else "length" for row in rows],
    }
