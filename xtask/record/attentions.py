"""Area `attentions`: the attention weights that `model.generate` returns (`output_attentions`).

Attention is computed by transformers' eager implementation, which alone returns weights.
"""

import pathlib

import numpy
import torch

import _fixture
import models
from _cases import MODELS, record_models

NEW_TOKENS = 4
# Beyond every window of the tiny models.
PROMPTS = ((13,), (4, 11))


def record(out: pathlib.Path) -> None:
    record_models(out, lambda model, name: {"cases": [record_case(model, *it) for it in enumerate(PROMPTS)]}, MODELS)


def record_case(model, index: int, lengths: tuple[int, ...]) -> dict:
    rng = numpy.random.default_rng([91, index])
    prompts = [rng.integers(3, model.config.vocab_size, length).tolist() for length in lengths]
    ids, mask = models.left_padded(prompts)
    model.set_attn_implementation("eager")
    outputs = model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, pad_token_id=0,
        eos_token_id=None, return_dict_in_generate=True, output_attentions=True)  # fmt: skip
    width = ids.shape[1]
    return {
        "prompts": prompts,
        "tokens": outputs.sequences[:, width:].tolist(),
        "rows": [row_weights(outputs.attentions, row, width, width - len(it)) for row, it in enumerate(prompts)],
    }


def row_weights(steps, row: int, prompt_width: int, padding: int) -> list:
    """Per token and layer, what each head of the row gives to the columns it is shown, padding left
    out: for the first token from the prompt's middle position and its last, for others from the one."""
    found = []
    for step, layers in enumerate(steps):
        width = prompt_width + step
        found.append([])
        for weights in layers:
            # A layer with a window may be shown its newest columns only.
            first = max(0, padding - (width - weights.shape[-1]))
            queries = weights[row, :, :, first:]
            places = [padding + (queries.shape[1] - padding) // 2, queries.shape[1] - 1] if step == 0 else [-1]
            found[-1].append([_fixture.rounded(queries[:, place]) for place in places])
    return found
