"""Area `outputs`: the hidden states that `model.generate` returns, and its tokens without a cache.

Cases are made as in the area `generate`, and drawn again for the same reasons.
"""

import pathlib

import numpy
import torch
from transformers import GenerationConfig

import _fixture
import models
from _cases import GREEDY, SAMPLE, ended, ends_of, record_models, settled, until_settled

NEW_TOKENS = 10
# Of each state, every so many values.
STRIDE = 8
ONE, BATCH = (13,), (5, 17)
UNCACHED = {"use_cache": False}

# Name, lengths of the prompts, and the config, given the ids of a plain run in the order said.
CASES = (
    ("greedy", ONE, lambda said: {**GREEDY}),
    ("drawn", ONE, lambda said: {**SAMPLE, "temperature": 1.3}),
    ("batch, end token", BATCH, lambda said: {**SAMPLE, "eos_token_id": said[3], "pad_token_id": 0}),
    ("batch, several returned", BATCH, lambda said: {**SAMPLE, "num_return_sequences": 2, "pad_token_id": 0}),
    ("no cache", ONE, lambda said: {**GREEDY, **UNCACHED}),
    ("no cache, batch", BATCH, lambda said: {
        **SAMPLE, **UNCACHED, "repetition_penalty": 1.2, "eos_token_id": said[4], "pad_token_id": 0}),
    ("no cache, beams", BATCH, lambda said: {
        **GREEDY, **UNCACHED, "num_beams": 3, "num_return_sequences": 2, "eos_token_id": said[6], "pad_token_id": 0}),
)  # fmt: skip


def record(out: pathlib.Path) -> None:
    record_models(out, lambda model, name: {
        "stride": STRIDE, "cases": [record_case(model, *it) for it in enumerate(CASES)]})  # fmt: skip


def record_case(model, index: int, case: tuple) -> dict:
    return until_settled(
        f"{model.config.model_type}, {case[0]}", lambda attempt: try_case(model, [55, index, attempt], *case))


def try_case(model, draw: list[int], name: str, lengths: tuple[int, ...], config_of) -> dict:
    rng = numpy.random.default_rng(draw)
    prompts = [rng.integers(3, model.config.vocab_size, length).tolist() for length in lengths]
    seed = int(rng.integers(0, 2**32))
    plain_of = {"do_sample": config_of([1] * 99)["do_sample"], "max_new_tokens": NEW_TOKENS}
    said = [token for row in generate(model, prompts, seed, plain_of)["tokens"] for token in row]
    config = {"max_new_tokens": NEW_TOKENS, **config_of(said)}
    case = settled(lambda: generate(model, prompts, seed, config), rng, model)
    if len(set(case["tokens"][0])) < 3:
        raise models.TooClose("a row that repeats itself")
    return {"name": name, "config": config, "seed": seed if config["do_sample"] else None, "prompts": prompts, **case}


def generate(model, prompts, seed: int, config: dict) -> dict:
    """The new tokens of every row up to its end, and the states they were chosen from."""
    ids, mask = models.left_padded(prompts, config.get("pad_token_id", 0))
    torch.manual_seed(seed)
    outputs = model.generate(
        ids, attention_mask=mask, generation_config=GenerationConfig(**config), return_dict_in_generate=True,
        output_hidden_states=True)  # fmt: skip
    found = ended(outputs.sequences[:, ids.shape[1] :].tolist(), ends_of(config))
    copies = len(found["tokens"]) // len(prompts)
    if "num_beams" not in config:
        found["hidden"] = [
            row_states(outputs.hidden_states[: len(said)], row, ids.shape[1] - len(prompts[row // copies]))
            for row, said in enumerate(found["tokens"])
        ]
    return found


def row_states(steps, row: int, padding: int) -> list:
    """Per token and layer, some values of the state it was chosen from; for the first token, those of
    the prompt's first position and its last."""
    cut = lambda state: _fixture.rounded(state[::STRIDE], 5)
    first = [[cut(layer[row, padding]), cut(layer[row, -1])] for layer in steps[0]]
    return [first, *([[cut(layer[row, -1])] for layer in step] for step in steps[1:])]
