"""Area `assisted`: what `model.generate` returns with a draft model, an early exit, prompt lookup or guidance.

Cases are made as in the area `generate`, and drawn again for the same reasons. Besides the tokens
they hold what `compute_transition_scores` makes of the scores, and the logits of the chosen tokens.
Where a case names a draft model, it is the model itself or a copy with noise on its weights, which
some guesses fail by.
"""

import copy
import pathlib
import shutil

import numpy
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import _fixture
import _mtp
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
# In files of their own, `more-*.json`. Guidance with a helper says other things than without: its second text is
# fed whatever the helper tries.
MORE = (
    ("early exit", "random", lambda said: {**GREEDY, "assistant_early_exit": 2}, EVERY),
    ("early exit, default settings", "random", lambda said: {**GREEDY, "assistant_early_exit": 1}, {}),
    ("early exit, penalties, end token", "random", lambda said: {
        **GREEDY, "assistant_early_exit": 2, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3,
        "eos_token_id": [said[15]], "pad_token_id": 0}, EVERY),
    ("early exit, drawn", "random", lambda said: {**SAMPLE, "assistant_early_exit": 2, "top_k": 0}, EVERY),
    ("early exit, drawn, heuristic", "random", lambda said: {
        **SAMPLE, "assistant_early_exit": 1, "temperature": 1.3, "top_k": 10}, {
        **EVERY, "num_assistant_tokens": 3, "num_assistant_tokens_schedule": "heuristic"}),
    ("early exit, drawn, with a say", "random", lambda said: {
        **SAMPLE, "assistant_early_exit": 2, "temperature": 1.5, "assistant_ensemble_weight": 0.5}, EVERY),
    ("guidance, lookup", "repetitive", lambda said: {**GREEDY, **LOOKUP, "guidance_scale": 1.8}, None),
    ("guidance, lookup, drawn", "repetitive", lambda said: {
        **SAMPLE, **LOOKUP, "guidance_scale": 1.5, "temperature": 0.5, "top_k": 20}, None),
    ("guidance, lookup, negative prompt", "repetitive, negative", lambda said: {
        **GREEDY, **LOOKUP, "guidance_scale": 1.4, "repetition_penalty": 1.1, "eos_token_id": [said[20]],
        "pad_token_id": 0}, None),
    ("guidance, draft", "random", lambda said: {**GREEDY, "guidance_scale": 1.6}, EVERY),
    ("guidance, draft while sure", "random", lambda said: {**GREEDY, "guidance_scale": 0.6}, {
        "num_assistant_tokens": 6, "assistant_confidence_threshold": 0.3}),
    ("guidance, draft, drawn", "random", lambda said: {**SAMPLE, "guidance_scale": 1.3, "temperature": 0.9}, EVERY),
    ("guidance, draft, negative prompt", "negative", lambda said: {
        **GREEDY, "guidance_scale": 1.5, "no_repeat_ngram_size": 3}, EVERY),
)  # fmt: skip
# A draft model with another tokenizer, in `universal.json`: a byte-level one beside one with SentencePiece's spaces,
# trained on these texts. The draft is the model with its token table put in the other order, so that guesses by text
# stand now and then. What is drawn is not recorded: transformers draws in the order of a hash table.
TEXTS = (
    "the red fox and the grey wolf walk along the river where the old mill stands",
    "in the morning the sea is calm and the boats of the harbour come home",
    "one stone, two stones; the wall grows higher than the house behind it.",
)
UNIVERSAL = (
    ("draft with another tokenizer", "the red fox and the", {**GREEDY}, EVERY),
    ("draft with another tokenizer, default settings", "in the morning the sea", {**GREEDY}, {}),
    ("draft with another tokenizer, heuristic", "one stone, two", {**GREEDY}, {
        **EVERY, "num_assistant_tokens": 2, "num_assistant_tokens_schedule": "heuristic"}),
    ("draft with another tokenizer, penalties", "the boats of the harbour", {
        **GREEDY, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2}, EVERY),
    ("draft with another tokenizer, few words", "a", {**GREEDY}, EVERY),
)  # fmt: skip
# Cases whose tokens a helper must leave as they are.
FAITHFUL = ("lookup", "draft", "early exit")


def record(out: pathlib.Path) -> None:
    record_models(out, lambda model, name: recorded(model, name, out, CASES))
    record_models(out, lambda model, name: recorded(model, name, out, MORE), prefix="more-")
    record_universal(out)
    _mtp.record(out, generate)


def record_universal(out: pathlib.Path) -> None:
    target, draft = byte_level(), spaced()
    ours, theirs = out / "universal", out / "universal-draft"
    for folder, tokenizer in ((ours, target), (theirs, draft)):
        config = _tiny.llama(vocab_size=len(tokenizer), num_key_value_heads=2, tie_word_embeddings=True)
        model = LlamaForCausalLM(LlamaConfig(**config))
        _tiny.draw(model, 3)
        if folder is theirs:
            like(model, draft, _tiny.load(ours), target)
        shutil.rmtree(folder, ignore_errors=True)
        model.to(torch.bfloat16).save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    model, helper = _tiny.load(ours), _tiny.load(theirs)
    cases = [until_settled(name, lambda attempt: try_universal(
        model, helper, target, draft, attempt, name, *case)) for name, *case in UNIVERSAL]  # fmt: skip
    recorded = {
        "made_by": _fixture.made_by("tokenizers", "torch", "transformers"),
        "model": "universal", "assistant": "universal-draft", "cases": cases,
    }  # fmt: skip
    _fixture.write_json(out / "universal.json", recorded, lines_to=2)


def try_universal(model, draft, ours, theirs, attempt: int, name: str, text: str, config: dict, assistant: dict) -> dict:
    # A draw that is too close is made again with one more word.
    prompts = [ours(" ".join([text, *TEXTS[0].split()[:attempt]]))["input_ids"]]
    config = {"max_new_tokens": NEW_TOKENS, **config}
    rng = numpy.random.default_rng([attempt, 5])
    run = lambda: generate(model, prompts, 0, config, (draft, assistant, ours, theirs))
    case = settled(run, rng, model)
    if generate(model, prompts, 0, config)["tokens"] != case["tokens"]:
        raise models.TooClose("a helper that changes the tokens")
    return {
        "name": name, "config": config, "assistant": assistant, "negative_prompts": None, "seed": None,
        "prompts": prompts, **case,
    }  # fmt: skip


def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def spaced() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(tokenizer_models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=True)
    alphabet = [chr(it) for it in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=160, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def like(model, tokenizer, other, others) -> None:
    """Makes a model say by its own tokens what the other says: its blocks, and the rows of tokens that both have."""
    own, known = model.state_dict(), others.get_vocab()
    for name, weight in other.state_dict().items():
        if "embed_tokens" not in name and "lm_head" not in name:
            own[name].copy_(weight)
    table, rows = model.get_input_embeddings().weight, other.get_input_embeddings().weight
    with torch.no_grad():
        for token, place in tokenizer.get_vocab().items():
            same = known.get(token.replace("\u2581", "\u0120"))
            if same is not None:
                table[place] = rows[same]


def recorded(model, name: str, out: pathlib.Path, cases: tuple) -> dict:
    source, assistant = out.parent / "models" / name, f"../models/{name}"
    if name in DRAFTS:
        draft, assistant = noisy_copy(source, out / f"{name}-draft", DRAFTS[name]), f"{name}-draft"
    else:
        draft = _tiny.load(source)
    # Guidance reads the two texts in one batch, which longrope makes another reading.
    guides = lambda case: "guidance_scale" in case[2]([1] * 99)
    wanted = cases
    if name == LONGROPE:
        wanted = [it for it in cases if not guides(it)] + [*CROSSING] * (cases is CASES)
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
    if kind.startswith("repetitive"):
        part = ids(5)
        return [ids(before + 3) + part + ids(2) + part + part[:3]], [ids(7)] if "negative" in kind else None
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
    helpers = ("prompt_lookup_num_tokens", "assistant_early_exit")
    helpless = {key: it for key, it in config.items() if key not in helpers}
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
    kwargs, own = {}, model.generation_config
    if helper is not None and "assistant_early_exit" in config:
        # The model is its own draft, and its own configuration says how it guesses.
        model.generation_config = copy.deepcopy(own)
        model.generation_config.update(**helper[1])
    elif helper is not None:
        draft, settings, *tokenizers = helper
        draft.generation_config = GenerationConfig(**settings)
        kwargs["assistant_model"] = draft
        kwargs |= dict(zip(("tokenizer", "assistant_tokenizer"), tokenizers))
    if negative is not None:
        kwargs["negative_prompt_ids"] = torch.tensor(negative)
    torch.manual_seed(seed)
    outputs = model.generate(
        ids, attention_mask=mask, generation_config=GenerationConfig(**config), return_dict_in_generate=True,
        output_scores=True, output_logits=True, **kwargs)  # fmt: skip
    model.generation_config = own
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
