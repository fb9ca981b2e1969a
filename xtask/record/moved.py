"""Area `moved`: the strategies that transformers 5 has moved out of the library.

Beams in groups, beams that have to say given words, contrastive search and DoLa are recorded from the
last releases that ran them: 4.46.3, and 4.51.3 for the families that 4.46.3 does not know or gets
wrong. Their loops are the same in both. Each release lies in a folder of its own under `build/venv`,
where `cargo xtask record` puts it, and runs in a process of its own.

Cases are made as in the area `generate`, and drawn again for the same reasons.
"""

import contextlib
import functools
import json
import os
import pathlib
import subprocess
import sys

import numpy
import torch
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig, RepetitionPenaltyLogitsProcessor
from transformers.utils import logging

import _fixture
import models
from _cases import ends_of, noisy
from beams import described

HERE = pathlib.Path(__file__).resolve().parent
RELEASES = {
    "4.46.3": ("llama", "mistral", "qwen2", "gemma", "gemma2", "phi3-longrope"),
    "4.51.3": ("qwen3", "qwen3-moe", "gemma3", "phi3"),
}
NEW_TOKENS = 18
ATTEMPTS = 60
# As a share of the mean.
HIDDEN_NOISE = 3e-5
SHAKES = 3

ONE, SHORT, LONG = (13,), (1,), (37,)
BATCH = (5, 37, 13)
ENDS = {"pad_token_id": 0}


def group(beams: int, groups: int, penalty: float, **fields) -> dict:
    return {"num_beams": beams, "num_beam_groups": groups, "diversity_penalty": penalty, **fields}


def words(beams: int, ids: list, **fields) -> dict:
    return {"num_beams": beams, "force_words_ids": ids, **fields}


# Name, lengths of the prompts, and the config, given the ids of a plain search in the order said, ids
# that occur neither there nor in the prompts, and those of the first prompt.
CASES = (
    ("groups", ONE, lambda said, new, asked: group(4, 2, 0.8, num_return_sequences=4)),
    ("groups of one", SHORT, lambda said, new, asked: group(3, 3, 1.5, num_return_sequences=3, eos_token_id=said[8], **ENDS)),
    ("groups, end tokens", ONE, lambda said, new, asked: group(
        6, 3, 0.6, num_return_sequences=6, eos_token_id=[said[5], said[14]], **ENDS)),
    ("groups, early stopping", LONG, lambda said, new, asked: group(
        4, 2, 1.0, num_return_sequences=4, early_stopping=True, eos_token_id=[said[3], said[9]], **ENDS)),
    ("groups, never stopping early", ONE, lambda said, new, asked: group(
        4, 2, 0.5, num_return_sequences=3, early_stopping="never", length_penalty=0.6, eos_token_id=said[4], **ENDS)),
    ("groups, long preferred", ONE, lambda said, new, asked: group(
        4, 2, 2.5, num_return_sequences=2, length_penalty=1.8, eos_token_id=said[7], **ENDS)),
    ("groups, bias and bigrams", ONE, lambda said, new, asked: group(
        4, 2, 0.7, num_return_sequences=4, sequence_bias=[[[said[2]], -1.5], [[said[11]], 2.0]], no_repeat_ngram_size=2,
        renormalize_logits=True)),
    ("groups, penalty", LONG, lambda said, new, asked: group(
        4, 4, 0.4, num_return_sequences=4, repetition_penalty=1.2, min_new_tokens=6, eos_token_id=said[1], **ENDS)),
    ("groups, batch", BATCH, lambda said, new, asked: group(
        4, 2, 0.9, num_return_sequences=2, eos_token_id=[said[11], said[40]], early_stopping=True, **ENDS)),
    ("groups, no length penalty", SHORT, lambda said, new, asked: group(
        6, 2, 1.2, num_return_sequences=5, length_penalty=0.0, eos_token_id=[said[6], said[15]], **ENDS)),
    ("groups, short preferred", ONE, lambda said, new, asked: group(
        4, 2, 0.3, num_return_sequences=4, length_penalty=-0.1, early_stopping="never", eos_token_id=said[9], **ENDS)),
    ("groups far apart", LONG, lambda said, new, asked: group(8, 4, 30.0, num_return_sequences=8)),
    ("groups, bans and a forced end", ONE, lambda said, new, asked: group(
        4, 2, 0.9, num_return_sequences=3, bad_words_ids=[said[6:8], [said[9]]], suppress_tokens=[said[3]],
        forced_eos_token_id=said[12], eos_token_id=said[12], **ENDS)),
    ("groups, decay towards the end", LONG, lambda said, new, asked: group(
        6, 3, 0.5, num_return_sequences=4, exponential_decay_length_penalty=[3, 1.3], eos_token_id=said[13], **ENDS)),
    ("groups, batch, penalties", BATCH, lambda said, new, asked: group(
        4, 2, 0.6, num_return_sequences=4, repetition_penalty=1.2, no_repeat_ngram_size=3, early_stopping="never",
        eos_token_id=[said[4], said[22], said[47]], **ENDS)),
    ("groups, batch, one returned", BATCH, lambda said, new, asked: group(
        9, 3, 2.0, min_new_tokens=5, length_penalty=0.7, eos_token_id=[said[2], said[20]], **ENDS)),
    ("word", ONE, lambda said, new, asked: words(3, [new[:1]], num_return_sequences=2)),
    ("phrase", ONE, lambda said, new, asked: words(4, [new[:3]], eos_token_id=said[7], **ENDS)),
    ("phrase of what is said anyway", ONE, lambda said, new, asked: words(
        8, [said[4:6]], num_return_sequences=2, eos_token_id=said[12], **ENDS)),
    ("two words", LONG, lambda said, new, asked: words(
        12, [new[:1], new[1:3]], num_return_sequences=2, eos_token_id=[said[6], said[20]], **ENDS)),
    ("words that begin alike", ONE, lambda said, new, asked: words(6, [new[:2], [new[0], new[3]]], length_penalty=0.5)),
    ("one of several words", ONE, lambda said, new, asked: words(
        4, [[new[:1], new[1:3], new[4:5]]], eos_token_id=said[3], **ENDS)),
    ("one of several that begin alike", ONE, lambda said, new, asked: words(
        5, [[new[:2], [new[0], new[2], new[3]], [new[0], new[4], new[5]]]], early_stopping=True, eos_token_id=said[9], **ENDS)),
    ("word and one of several", SHORT, lambda said, new, asked: words(
        6, [new[:2], [[new[2]], [new[3], new[4]]]], early_stopping="never", eos_token_id=said[5], **ENDS)),
    ("words, penalties", ONE, lambda said, new, asked: words(
        7, [new[:2]], num_return_sequences=2, repetition_penalty=1.3, no_repeat_ngram_size=2, min_new_tokens=8,
        eos_token_id=said[2], **ENDS)),
    ("words that the prompt holds", ONE, lambda said, new, asked: words(
        5, [asked[3:5], new[:2]], num_return_sequences=2, eos_token_id=said[6], **ENDS)),
    ("word that the prompt begins", ONE, lambda said, new, asked: words(
        9, [[asked[-1], *new[:2]]], eos_token_id=said[4], **ENDS)),
    ("words, long phrase", SHORT, lambda said, new, asked: words(
        6, [new[:6]], length_penalty=1.5, eos_token_id=said[8], **ENDS)),
    ("words, three", LONG, lambda said, new, asked: words(
        12, [new[:2], new[2:3], new[3:5]], length_penalty=0.3, eos_token_id=[said[5], said[17]],
        **ENDS)),
    ("word twice", ONE, lambda said, new, asked: words(8, [new[:2], new[:2]], eos_token_id=said[10], **ENDS)),
    ("words that overlap", ONE, lambda said, new, asked: words(
        8, [new[:2], new[1:3]], early_stopping=True, eos_token_id=said[7], **ENDS)),
    ("words, two choices", ONE, lambda said, new, asked: words(
        12, [[new[:1], new[1:3]], [new[3:5], new[5:6]]], eos_token_id=said[11], **ENDS)),
    ("words, choice between the likely and the new", LONG, lambda said, new, asked: words(
        6, [[said[3:5], new[:2]]], num_return_sequences=2, eos_token_id=said[9], **ENDS)),
    ("words, bias and no unigram twice", SHORT, lambda said, new, asked: words(
        7, [new[:1], new[1:3]], sequence_bias=[[[said[1]], -2.0], [[new[0]], 4.0]], no_repeat_ngram_size=1,
        renormalize_logits=True)),
    ("words, bans and a forced end", ONE, lambda said, new, asked: words(
        6, [new[:2]], suppress_tokens=[said[2], said[5]], bad_words_ids=[said[8:10]], forced_eos_token_id=said[3],
        eos_token_id=said[3], min_new_tokens=7, **ENDS)),
    ("word, many beams", ONE, lambda said, new, asked: words(
        16, [new[:2]], num_return_sequences=4, early_stopping="never", length_penalty=0.8, eos_token_id=[said[4], said[13]],
        **ENDS)),
    ("words, batch, penalties", BATCH, lambda said, new, asked: words(
        8, [new[:1], [[new[1], new[2]], [new[3]]]], num_return_sequences=2, repetition_penalty=1.2,
        no_repeat_ngram_size=3, length_penalty=0.5, eos_token_id=said[15], **ENDS)),
    ("words, batch", BATCH, lambda said, new, asked: words(
        5, [new[:2], new[2:3]], eos_token_id=[said[8], said[30]], early_stopping=True, **ENDS)),
    ("contrastive", ONE, lambda said, new, asked: {"penalty_alpha": 0.6, "top_k": 4}),
    ("contrastive, small weight", LONG, lambda said, new, asked: {"penalty_alpha": 0.25, "top_k": 8}),
    ("contrastive, one token", SHORT, lambda said, new, asked: {"penalty_alpha": 0.5, "top_k": 6}),
    ("contrastive, end tokens", ONE, lambda said, new, asked: {
        "penalty_alpha": 0.7, "top_k": 5, "eos_token_id": said, **ENDS}),
    ("contrastive, penalties", ONE, lambda said, new, asked: {
        "penalty_alpha": 0.5, "top_k": 5, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2}),
    ("contrastive, two candidates", ONE, lambda said, new, asked: {
        "penalty_alpha": 0.8, "top_k": 2, "suppress_tokens": said[:2], "bad_words_ids": [said[4:6]]}),
    ("contrastive, novelty alone", ONE, lambda said, new, asked: {"penalty_alpha": 1.0, "top_k": 3}),
    ("contrastive, default candidates", SHORT, lambda said, new, asked: {"penalty_alpha": 0.45}),
    ("contrastive, late end", LONG, lambda said, new, asked: {
        "penalty_alpha": 0.5, "top_k": 4, "min_new_tokens": 12, "eos_token_id": said, **ENDS}),
    ("contrastive, bias", LONG, lambda said, new, asked: {
        "penalty_alpha": 0.4, "top_k": 6, "sequence_bias": [[[said[2]], -2.0], [[new[0]], 3.0]], "no_repeat_ngram_size": 3}),
    ("contrastive, batch, penalties", BATCH, lambda said, new, asked: {
        "penalty_alpha": 0.55, "top_k": 7, "repetition_penalty": 1.2, "eos_token_id": said[:9], **ENDS}),
    ("contrastive, batch", BATCH, lambda said, new, asked: {
        "penalty_alpha": 0.6, "top_k": 4, "eos_token_id": said[:9], **ENDS}),
    ("dola, low", ONE, lambda said, new, asked: {"dola_layers": "low"}),
    ("dola, high", ONE, lambda said, new, asked: {"dola_layers": "high", "repetition_penalty": 1.2}),
    ("dola, layers", LONG, lambda said, new, asked: {"dola_layers": [0, 1, 2]}),
    ("dola, one layer", SHORT, lambda said, new, asked: {"dola_layers": [1, 7], "eos_token_id": said[:6], **ENDS}),
    ("dola, draws", ONE, lambda said, new, asked: {"dola_layers": [1, 2], "do_sample": True, "top_k": 6, "temperature": 0.8}),
    ("dola, low, bigrams", LONG, lambda said, new, asked: {
        "dola_layers": "low", "no_repeat_ngram_size": 2, "repetition_penalty": 1.3}),
    ("dola, low, batch", BATCH, lambda said, new, asked: {
        "dola_layers": "low", "repetition_penalty": 1.2, "eos_token_id": said[:5], **ENDS}),
    ("dola, high, end tokens", SHORT, lambda said, new, asked: {
        "dola_layers": "high", "min_new_tokens": 6, "eos_token_id": said[:5], **ENDS}),
    ("dola, high, batch", BATCH, lambda said, new, asked: {"dola_layers": "high", "suppress_tokens": said[:3]}),
    ("dola, embedding alone", ONE, lambda said, new, asked: {"dola_layers": [0], "sequence_bias": [[[said[3]], -2.0]]}),
    ("dola, draws from many", LONG, lambda said, new, asked: {
        "dola_layers": "high", "do_sample": True, "top_k": 0, "top_p": 0.9, "repetition_penalty": 1.2}),
    ("dola, draws, batch", BATCH, lambda said, new, asked: {
        "dola_layers": [0, 1, 2], "do_sample": True, "temperature": 1.4, "eos_token_id": said[:8], **ENDS}),
    ("dola, batch", BATCH, lambda said, new, asked: {"dola_layers": [0, 2], "eos_token_id": said[:8], **ENDS}),
)  # fmt: skip


def record(out: pathlib.Path) -> None:
    for release in RELEASES:
        packages = HERE.parent.parent / "build" / "venv" / f"transformers-{release}"
        if not packages.is_dir():
            raise SystemExit(f"{packages} is missing; `cargo xtask record` makes it")
        path = os.pathsep.join([str(packages), str(HERE)])
        command = [sys.executable, __file__, release, str(out)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})


def record_release(release: str, out: pathlib.Path) -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    penalise_no_padding()
    for name in RELEASES[release]:
        model = load(out.parent / "models" / name)
        cases = [(index, *case) for index, case in enumerate(CASES)]
        if model.config.tie_word_embeddings and model.config.num_hidden_layers == 3:
            # The lower half of so few layers has none that HF contrasts.
            cases = [case for case in cases if not case[1].startswith("dola, low")]
        recorded = {
            "made_by": _fixture.made_by("torch", "transformers"),
            "model": f"../models/{name}",
            "cases": [record_case(model, *case) for case in cases],
        }
        _fixture.write_json(out / f"{name}.json", recorded, lines_to=2)


def penalise_no_padding() -> None:
    """Lets the repetition penalty look past leading padding, as transformers 5 does: processors are those of
    5 in all modes."""
    penalise = RepetitionPenaltyLogitsProcessor.__call__

    def without_padding(self, ids, scores):
        leading = (ids != 0).cumsum(-1) == 0
        return penalise(self, torch.where(leading, ids[:, -1:], ids), scores)

    RepetitionPenaltyLogitsProcessor.__call__ = without_padding


def load(folder: pathlib.Path):
    """The model of a folder in fp32. The older releases know RoPE's base under its older name, and
    Gemma 2's soft caps in the plain attention only."""
    rope = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("rope_parameters", {})
    renamed = {"rope_theta": rope["rope_theta"]} if rope else {}
    model = AutoModelForCausalLM.from_pretrained(
        folder, torch_dtype=torch.float32, attn_implementation="eager", **renamed
    )
    # A case is filled up from the model's own, as transformers 5 does it.
    model.generation_config = GenerationConfig()
    own = folder / "generation_config.json"
    model.own = json.loads(own.read_text(encoding="utf-8")) if own.is_file() else {}
    model.forward = uncached(model.forward)
    return model.eval()


class Read(DynamicCache):
    """Where keys and values would be, the tokens read so far, of which one can only make more rows."""

    def __init__(self, ids: torch.Tensor):
        super().__init__()
        self.key_cache = self.value_cache = [ids[:, None, :, None]]

    def ids(self) -> torch.Tensor:
        return self.key_cache[0][:, 0, :, 0]

    def batch_repeat_interleave(self, repeats: int):
        self.__init__(self.ids().repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor):
        self.__init__(self.ids()[indices])


def uncached(forward):
    """The model's pass, which reads all of the text each time. Contrastive search does not run without a
    cache, the caches of these releases drop too much of a window, and nothing here is about caches."""

    @functools.wraps(forward)
    def read(input_ids, attention_mask, past_key_values=None, use_cache=False, **others):
        for name in ("position_ids", "cache_position", "num_logits_to_keep", "logits_to_keep"):
            others.pop(name, None)
        ids = input_ids
        if isinstance(past_key_values, Read):
            ids = torch.cat([past_key_values.ids(), input_ids], dim=1)
        positions = (attention_mask.cumsum(-1) - 1).masked_fill(attention_mask == 0, 1)
        out = forward(input_ids=ids, attention_mask=attention_mask, position_ids=positions, use_cache=False, **others)
        new = slice(ids.shape[1] - input_ids.shape[1], None)
        out.logits = out.logits[:, new]
        if out.hidden_states is not None:
            out.hidden_states = tuple(it[:, new] for it in out.hidden_states)
        if use_cache:
            out["past_key_values"] = Read(ids)
        return out

    return read


def record_case(model, index: int, name: str, lengths: tuple[int, ...], config_of) -> dict:
    for attempt in range(ATTEMPTS):
        try:
            return try_case(model, [index, attempt, 6], name, lengths, config_of)
        except models.TooClose as reason:
            last = reason
    raise SystemExit(f"{model.config.model_type}, {name}: {last}, {ATTEMPTS} times")


def try_case(model, draw: list[int], name: str, lengths: tuple[int, ...], config_of) -> dict:
    rng = numpy.random.default_rng(draw)
    prompts = [rng.integers(3, model.config.vocab_size, length).tolist() for length in lengths]
    seed = int(rng.integers(0, 2**32))
    beams = {} if name.startswith(("contrastive", "dola")) else {"num_beams": 3, "num_return_sequences": 3}
    bare = {"do_sample": name.startswith("dola, draws"), "max_new_tokens": NEW_TOKENS}
    plain = generate(model, prompts, seed, {**bare, **beams})["tokens"]
    said = [token for row in plain for token in row]
    if len(set(said[:18])) < 7:
        raise models.TooClose("a plain run that repeats itself")
    taken = set(said).union(*prompts)
    new = [it for it in rng.permutation(numpy.arange(3, model.config.vocab_size)).tolist() if it not in taken]

    config = {**bare, **config_of(said, new, prompts[0])}
    if name.startswith(("contrastive", "dola")) and "eos_token_id" in config:
        # End tokens that the strategy itself says, some of them late.
        free = {key: value for key, value in config.items() if key not in ("eos_token_id", "pad_token_id")}
        own = [row[at] for row, at in zip(generate(model, prompts, seed, free)["tokens"], (9, 14, 5))]
        config["eos_token_id"] = own
    refuse_contradictions(config)
    found = generate(model, prompts, seed, config)
    for _ in range(SHAKES):
        with noisy(model, rng), shaken(model, rng):
            shaky = generate(model, prompts, seed, config)
        if shaky["tokens"] != found["tokens"]:
            raise models.TooClose("tokens that rounding could change")
    if found["tokens"] == plain:
        raise models.TooClose("a config without effect")
    return {
        "name": name,
        "config": config,
        "seed": seed if config["do_sample"] else None,
        "prompts": prompts,
        **found,
    }


def refuse_contradictions(config: dict) -> None:
    """Refuses end tokens inside forced words, and forced tokens that are banned."""
    ends = ends_of(config)
    words = config.get("force_words_ids", [])
    phrases = [it for word in words for it in (word if isinstance(word[0], list) else [word])]
    banned = [*config.get("suppress_tokens", []), *(it[0] for it in config.get("bad_words_ids", []) if len(it) == 1)]
    if {*ends, *banned} & {token for it in phrases for token in it} or config.get("forced_eos_token_id") in banned:
        raise models.TooClose("a config that contradicts itself")


def generate(model, prompts: list[list[int]], seed: int, config: dict) -> dict:
    """The new tokens of each returned sequence; of beams their scores too."""
    ids, mask = models.left_padded(prompts, config.get("pad_token_id", 0))
    torch.manual_seed(seed)
    given = {**model.own, **config, "use_cache": "penalty_alpha" in config, "return_dict_in_generate": True}
    # Not the cache of a family's own, whose masks have a form of their own.
    cache = {"past_key_values": DynamicCache()} if given["use_cache"] else {}
    with torch.no_grad(), missing_words():
        out = model.generate(
            ids, attention_mask=mask, generation_config=GenerationConfig(**given), output_scores=True, **cache
        )  # fmt: skip
    ends = ends_of(config)
    if "num_beams" in config:
        if out.beam_indices is None:
            raise models.TooClose("a forced word that is missing")
        found = described(out, ids.shape[1], ends)
        if "num_beam_groups" in config:
            # Beam indices are wrong in these releases for all groups but the first.
            del found["beam_indices"]
            found["tokens"] = [models.until_end(row, ends) for row in out.sequences[:, ids.shape[1] :].tolist()]
            found["finish_reasons"] = reasons(found["tokens"], ends)
        return checked(found, prompts, config)
    rows = [models.until_end(row, ends) for row in out.sequences[:, ids.shape[1] :].tolist()]
    return {"tokens": rows, "finish_reasons": reasons(rows, ends)}


def reasons(rows: list[list[int]], ends: list[int]) -> list[str]:
    """Why each row ended."""
    return ["eos" if row[-1] in ends else "length" for row in rows]


@contextlib.contextmanager
def shaken(model, rng):
    """While open, the hidden states are off by a little: contrastive search compares the last, DoLa
    reads the earlier ones, and experts are chosen by them."""

    def shake(_module, _inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        noise = torch.from_numpy(rng.uniform(-HIDDEN_NOISE, HIDDEN_NOISE, tuple(hidden.shape)).astype(numpy.float32))
        hidden = hidden + noise * hidden.abs().mean()
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    modules = [*model.model.layers, model.model.norm]
    handles = [it.register_forward_hook(shake) for it in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def missing_words():
    """What the releases fail over where one sequence found its words and another did not."""
    try:
        yield
    except (TypeError, RuntimeError) as error:
        if not any(it in str(error) for it in ("object of type 'NoneType' has no len()", "dtype of NoneType")):
            raise
        raise models.TooClose("a forced word that is missing") from error


def checked(found: dict, prompts: list[list[int]], config: dict) -> dict:
    """Refuses sequences that lack a forced word or hold what is banned, which these releases return when
    they find no other."""
    if not numpy.isfinite(found["scores"]).all():
        raise models.TooClose("a sequence that is banned")
    for at, row in enumerate(found["tokens"]):
        text = prompts[at * len(prompts) // len(found["tokens"])] + row
        for word in config.get("force_words_ids", []):
            phrases = word if isinstance(word[0], list) else [word]
            if not any(text[i : i + len(it)] == it for it in phrases for i in range(len(text))):
                raise models.TooClose("a forced word that is missing")
    return found


if __name__ == "__main__":
    record_release(sys.argv[1], pathlib.Path(sys.argv[2]))
