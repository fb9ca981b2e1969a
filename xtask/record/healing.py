"""Area `healing`: `token_healing`, with the model inside the library and its tokenizer.

transformers needs a begin token for it, which the tokenizer does not have: another special token
stands in, and its effect is left out by asking for prompts of several tokens. It looks for a last
token that begins a word only where a lone space is a token, so prompts end within a word here.
"""

import pathlib

import numpy
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging

import _fixture
import models
from _cases import ended, noisy
from stopping import BUNDLED

NEW_TOKENS = 12
WORDS = (
    "Once upon a time there was a little fisherman who lived by the harbour with his daughter",
    "Tell me a story about the lighthouse keeper and the storm that came over the mountains",
    "Hello, I would like to know something about elephants, whales and other large animals",
    "The weather is wonderful this morning, and everybody in the village is celebrating together",
)  # fmt: skip
CASES = 36


def record(out: pathlib.Path) -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).eval()
    # Padding that is an end token too would not be masked while a prompt is healed.
    model.generation_config.eos_token_id = 2
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED, padding_side="left")
    tokenizer.bos_token = "<|im_start|>"
    rng, cases = numpy.random.default_rng(11), []
    while len(cases) < CASES:
        case = try_case(model, tokenizer, rng, len(cases))
        if case is not None:
            cases.append(case)
    if sum(it["healed"] != it["prompts"] for it in cases) < CASES * 2 // 3:
        raise SystemExit("too few prompts are healed")
    recorded = {
        "made_by": _fixture.made_by("torch", "transformers"),
        "model": "../../crates/mlx-genkit/bundled",
        "cases": cases,
    }
    _fixture.write_json(out / "bundled.json", recorded, lines_to=2)


def try_case(model, tokenizer, rng, index: int) -> dict | None:
    texts = [cut(tokenizer, rng) for _ in range(2 if index % 4 == 3 else 1)]
    prompts = [tokenizer(it).input_ids for it in texts]
    config = {"max_new_tokens": NEW_TOKENS, "do_sample": index % 3 == 2, "eos_token_id": 2, "pad_token_id": 0}
    if index % 6 == 5:
        config.update(num_beams=3, num_return_sequences=2, do_sample=False)
    seed = int(rng.integers(0, 2**32))
    found = generate(model, tokenizer, prompts, seed, config)
    if index % 4 != 0 and any(a == b for a, b in zip(found["healed"], prompts)):
        return None
    with noisy(model, rng):
        if generate(model, tokenizer, prompts, seed, config) != found:
            return None
    return {
        "name": f"{index}: {' | '.join(texts)}", "config": {**config, "token_healing": True},
        "seed": seed if config["do_sample"] else None, "prompts": prompts, **found,
    }  # fmt: skip


def cut(tokenizer, rng) -> str:
    """The beginning of a text that ends within a word and begins no word with its last token."""
    while True:
        text = WORDS[rng.integers(len(WORDS))]
        text = text[: rng.integers(6, len(text))]
        ids = tokenizer(text).input_ids
        if len(ids) > 2 and text[-1].isalpha() and not tokenizer.decode(ids[-1]).startswith(" "):
            return text


def generate(model, tokenizer, prompts, seed: int, config: dict) -> dict:
    ids, mask = models.left_padded(prompts, 0)
    torch.manual_seed(seed)
    sequences = model.generate(
        ids, attention_mask=mask, tokenizer=tokenizer, generation_config=GenerationConfig(**config, token_healing=True))
    copies, width = len(sequences) // len(prompts), ids.shape[1]
    healed = [row[width - len(prompt) : width] for row, prompt in zip(sequences[::copies].tolist(), prompts)]
    return {"healed": healed, **ended(sequences[:, width:].tolist(), [2])}
