"""Area `assisted`: what `model.generate` returns with a draft model, prompt lookup or guidance.

Cases are made as in the area `generate`, and drawn again for the same reasons. Besides the tokens
they hold what `compute_transition_scores` makes of the scores, and the logits of the chosen tokens.
Where a case names a draft model, it is the model itself or a copy with noise on its weights, which
some guesses fail by.
"""

import pathlib
import shutil

import numpy
import torch
from transformers import GenerationConfig

import _fixture
import _tiny
import models
from _cases import GREEDY, SAMPLE, ended, ends_of, record_models, settled, until_settled

NEW_TOKENS = 28
# Models with a noisy copy: full attention, sliding windows. The noise is a share of each tensor's
# spread.
DRAFTS = {"llama": 0.12, "gemma3": 0.1}
EVERY, LOOKUP = {"num_assistant_tokens": 5, "assistant_confidence_threshold": 0.0}, {"prompt_lookup_num_tokens": 4}
# Longrope reads a text differently once it outgrows the original context. When a checked guess does
# that, transformers judges all guesses of the pass by the longer reading, and where they fall, goes on
# with a cache of both: not what it says alone. So prompts are longer than that context here, except
# in cases that cross it; those hold what is said without the helper.
LONGROPE = "phi3-longrope-5x"
CONTEXT = 20

# Name, the prompt's kind, the config given the ids of a plain run, and the draft model's config.
CASES = (
    ("lookup", "repetitive", lambda said: {**GREEDY, **LOOKUP}, None),
    ("lookup, three tokens matched", "repetitive", lambda said: {
        **GREEDY, "prompt_lookup_num_tokens": 7, "max_matching_ngram_size": 3}, None),
    ("lookup, penalties, end token", "repetitive", lambda said: {
        **GREEDY, **LOOKUP, "repetition_penalty": 1.2, "no_repeat_ngram_size": 4, "eos_token_id": said[19],
        "pad_token_id": 0}, None),
    ("lookup, bans", "repetitive", lambda said: {
        **GREEDY, **LOOKUP, "suppress_tokens": [said[2], said[6]], "min_new_tokens": 9, "eos_token_id": said[4],
        "pad_token_id": 0}, None),
    ("lookup, drawn", "repetitive", lambda said: {**SAMPLE, **LOOKUP, "temperature": 0.4, "top_p": 1.0}, None),
    ("lookup, drawn from few", "repetitive", lambda said: {
        **SAMPLE, **LOOKUP, "top_k": 4, "top_p": 1.0, "min_p": 0.05, "temperature": 0.7, "repetition_penalty": 1.1}, None),
    ("draft", "random", lambda said: {**GREEDY}, EVERY),
    ("draft, default settings", "random", lambda said: {**GREEDY}, {}),
    ("draft, heuristic schedule", "random", lambda said: {**GREEDY}, {
        **EVERY, "num_assistant_tokens": 3, "num_assistant_tokens_schedule": "heuristic"}),
    ("draft, penalties, end token", "random", lambda said: {
        **GREEDY, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "eos_token_id": [said[15]], "pad_token_id": 0},
     EVERY),
    ("draft, drawn", "random", lambda said: {**SAMPLE, "top_k": 0}, EVERY),
    ("draft, drawn, warm", "random", lambda said: {**SAMPLE, "temperature": 1.5, "top_k": 20}, EVERY),
    ("draft, drawn, cool", "random", lambda said: {**SAMPLE, "temperature": 0.6, "top_p": 0.9}, EVERY),
    ("draft, drawn while sure", "random", lambda said: {**SAMPLE, "temperature": 0.5}, {
        "num_assistant_tokens": 6, "assistant_confidence_threshold": 0.5}),
    ("draft, drawn, heuristic", "random", lambda said: {**SAMPLE, "temperature": 1.3, "top_k": 10}, {
        **EVERY, "num_assistant_tokens": 2, "num_assistant_tokens_schedule": "heuristic"}),
    ("draft, drawn, processors", "random", lambda said: {
        **SAMPLE, "temperature": 1.2, "repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "min_new_tokens": 12,
        "eos_token_id": [said[5], said[9]], "pad_token_id": 0, "renormalize_logits": True}, EVERY),
    ("draft, drawn, with a say", "random", lambda said: {
        **SAMPLE, "temperature": 1.5, "top_k": 0, "assistant_ensemble_weight": 0.5}, EVERY),
    ("guidance", "random", lambda said: {**GREEDY, "guidance_scale": 1.8}, None),
    ("guidance below one", "random", lambda said: {**GREEDY, "guidance_scale": 0.4, "repetition_penalty": 1.2}, None),
    ("guidance, drawn", "random", lambda said: {**SAMPLE, "guidance_scale": 1.5, "temperature": 1.3}, None),
    ("guidance, batch", "batch", lambda said: {
        **SAMPLE, "guidance_scale": 1.3, "eos_token_id": [said[11], said[40]], "pad_token_id": 0}, None),
    ("negative prompt", "negative", lambda said: {**GREEDY, "guidance_scale": 2.0}, None),
    ("scores, greedy", "random", lambda said: {
        **GREEDY, "repetition_penalty": 1.2, "eos_token_id": [said[18]], "pad_token_id": 0}, None),
    ("scores, drawn", "batch", lambda said: {
        **SAMPLE, "temperature": 1.4, "top_k": 12, "top_p": 0.95, "eos_token_id": [said[15], said[44]],
        "pad_token_id": 0}, None),
)  # fmt: skip
CROSSING = (
    ("lookup, across the original context", "repetitive", lambda said: {**GREEDY, **LOOKUP}, None),
    ("lookup, across, penalties", "repetitive", lambda said: {
        **GREEDY, **LOOKUP, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3}, None),
    ("draft, across the original context", "random", lambda said: {**GREEDY}, EVERY),
)  # fmt: skip
# Cases whose tokens a helper must leave as they are.
FAITHFUL = ("lookup", "draft")


def record(out: pathlib.Path) -> None:
    record_models(out, lambda model, name: recorded(model, name, out))


def recorded(model, name: str, out: pathlib.Path) -> dict:
    source, assistant = out.parent / "models" / name, f"../models/{name}"
    if name in DRAFTS:
        draft, assistant = noisy_copy(source, out / f"{name}-draft", DRAFTS[name]), f"{name}-draft"
    else:
        draft = _tiny.load(source)
    # Guidance reads the two texts in one batch, which longrope makes another reading.
    guides = lambda case: "guidance_scale" in case[2]([1] * 99)
    wanted = CASES if name != LONGROPE else [it for it in CASES if not guides(it)] + [*CROSSING]
    return {"assistant": assistant, "cases": [record_case(model, draft, *it) for it in enumerate(wanted)]}


def noisy_copy(source: pathlib.Path, folder: pathlib.Path, share: float):
    """A draft model: the weights of another with noise, in half the bytes."""
    model, rng = _tiny.load(source), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.add_(torch.randn(weight.shape, generator=rng) * weight.std() * share)
    shutil.rmtree(folder, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return _tiny.load(folder)


def record_case(model, draft, index: int, case: tuple) -> dict:
    return until_settled(
        f"{model.config.model_type}, {case[0]}", lambda attempt: try_case(model, draft, [77, index, attempt], *case))


def draw_prompts(rng, kind: str, vocab: int, before: int) -> tuple[list[list[int]], list[list[int]] | None]:
    """Prompts, each with so many ids more before it, and negative ones."""
    ids = lambda length: rng.integers(3, vocab, length).tolist()
    if kind == "repetitive":
        part = ids(5)
        return [ids(before + 3) + part + ids(2) + part + part[:3]], None
    if kind == "batch":
        return [ids(before + length) for length in (5, 17, 11)], None
    return [ids(before + 13)], [ids(7)] if kind == "negative" else None


def try_case(model, draft, draw: list[int], name: str, kind: str, config_of, assistant: dict | None) -> dict:
    rng = numpy.random.default_rng(draw)
    longrope, crosses = model.name_or_path.endswith(LONGROPE), "across" in name
    before = CONTEXT if longrope and not crosses else 0
    prompts, negative = draw_prompts(rng, kind, model.config.vocab_size, before)
    seed = int(rng.integers(0, 2**32))
    plain_of = GREEDY if not config_of([1] * 99)["do_sample"] else SAMPLE
    plain = generate(model, prompts, seed, {**plain_of, "max_new_tokens": NEW_TOKENS})
    said = [token for row in plain["tokens"] for token in row]
    config = {"max_new_tokens": NEW_TOKENS, **config_of(said)}
    helpless = {key: it for key, it in config.items() if key != "prompt_lookup_num_tokens"}
    helper = None if assistant is None or crosses else (draft, assistant)
    ran = helpless if crosses else config
    case = settled(lambda: generate(model, prompts, seed, ran, helper, negative), rng, model, draft)
    if not config["do_sample"] and name.startswith(FAITHFUL):
        if generate(model, prompts, seed, helpless)["tokens"] != case["tokens"]:
            raise models.TooClose("a helper that changes the tokens")
    return {
        "name": name,
        "config": config,
        "assistant": assistant,
        "negative_prompts": negative,
        "seed": seed if config["do_sample"] else None,
        "prompts": prompts,
        **case,
    }


def generate(model, prompts, seed: int, config: dict, helper=None, negative=None) -> dict:
    """The new tokens of every row up to its end, what they were chosen by, and their logits."""
    ids, mask = models.left_padded(prompts, config.get("pad_token_id", 0))
    kwargs = {}
    if helper is not None:
        draft, settings = helper
        draft.generation_config = GenerationConfig(**settings)
        kwargs["assistant_model"] = draft
    if negative is not None:
        kwargs["negative_prompt_ids"] = torch.tensor(negative)
    torch.manual_seed(seed)
    outputs = model.generate(
        ids, attention_mask=mask, generation_config=GenerationConfig(**config), return_dict_in_generate=True,
        output_scores=True, output_logits=True, **kwargs)  # fmt: skip
    new = outputs.sequences[:, ids.shape[1] :]
    found = ended(new.tolist(), ends_of(config))
    score = lambda normalize: model.compute_transition_scores(
        outputs.sequences, outputs.scores, normalize_logits=normalize)
    logits = torch.stack(outputs.logits, 1)[: len(new)].gather(2, new[..., None])[..., 0]
    # JSON has no infinity: null stands for the score of a token that was banned and yet stood.
    plain = lambda it: None if it == -numpy.inf else _fixture.rounded(it)
    cut = lambda rows: [[plain(it) for it in row[: len(said)]] for row, said in zip(rows.tolist(), found["tokens"])]
    return {
        **found,
        "transition_scores": cut(score(False)),
        "normalized_scores": cut(score(True)),
        "logits": cut(logits),
    }
