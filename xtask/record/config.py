"""What transformers makes of generation fields: the merge, the lengths, the checks, the processors.

Nothing is rebuilt here. Each case calls the real `generate` of a tiny model, which is halted where
it would begin to decode.
"""

import ast
import json
import pathlib
import random
import re
import warnings

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation import configuration_utils, utils

import _fixture

VOCAB = 24
MERGE_CASES = 300
PROCESSOR_CASES = 120

# Values that each field is drawn from.
VALUES = {
    "max_length": [4, 9, 20, 30],
    "max_new_tokens": [1, 5, 40],
    "min_length": [0, 3, 12, 50],
    "min_new_tokens": [0, 2, 8],
    "early_stopping": [True, False, "never"],
    "do_sample": [True, False],
    "num_beams": [1, 2, 4],
    "num_return_sequences": [1, 1, 1, 2, 3],
    "use_cache": [True, False],
    "cache_implementation": ["dynamic", "hybrid", "static"],
    "cache_config": [{"nbits": 4}],
    "max_cache_len": [64],
    "temperature": [1.0, 0.7, 1],
    "top_k": [50, 0, 3],
    "top_p": [1.0, 0.9],
    "min_p": [0.05],
    "top_h": [0.4],
    "typical_p": [1.0, 0.8],
    "epsilon_cutoff": [0.0, 0.01],
    "eta_cutoff": [0.0, 0.01],
    "repetition_penalty": [1.0, 1.3],
    "encoder_repetition_penalty": [1.0, 1.2],
    "length_penalty": [1.0, 0.5],
    "no_repeat_ngram_size": [0, 2],
    "bad_words_ids": [[[3, 4], [5]]],
    "renormalize_logits": [True, False],
    "forced_bos_token_id": [1],
    "forced_eos_token_id": [2, [2, 7]],
    "remove_invalid_values": [True, False],
    "exponential_decay_length_penalty": [[2, 1.5]],
    "suppress_tokens": [[6, 8], [2, 7], []],
    "begin_suppress_tokens": [[9]],
    "sequence_bias": [[[[3, 4], 1.5], [[5], -2.0]]],
    "watermarking_config": [{"bias": 1.5, "context_width": 2}, {"greenlist_ratio": 0.5}],
    "output_scores": [True, False],
    "output_logits": [True],
    "return_dict_in_generate": [True, False],
    "pad_token_id": [0, 23, -1],
    "bos_token_id": [1],
    "eos_token_id": [2, [2, 7], [2], -1],
    "encoder_no_repeat_ngram_size": [0, 3],
    "num_assistant_tokens": [5],
    "num_assistant_tokens_schedule": ["heuristic"],
    "prompt_lookup_num_tokens": [3],
    "penalty_alpha": [0.0, 0.6],
    "dola_layers": ["low", [1, 2]],
    "diversity_penalty": [0.0, 0.5],
    "num_beam_groups": [1, 2],
    "force_words_ids": [[[3, 4]]],
    "prefill_chunk_size": [4],
    "disable_compile": [True],
    "custom_entry": ["kept", 3],
}

# Values that HF refuses, drawn now and then.
REFUSED = {
    "max_new_tokens": [0, -2],
    "assistant_ensemble_weight": [1.0],
    "cache_implementation": ["no-such-cache"],
    "forced_bos_token_id": [6],
    "suppress_tokens": [[6, 2, 7]],
    "watermarking_config": [{"seeding_scheme": "none"}, {"greenlist_ratio": 1.5}, {"context_width": 0}],
    "streamer": [None],
}

# What makes the other fields idle, legal or illegal is drawn more often than they are.
FREQUENT = ["do_sample", "num_beams", "max_length", "max_new_tokens", "temperature"]
RARE = {"force_words_ids", "dola_layers", "prompt_lookup_num_tokens", "custom_entry"}


class Notes:
    """Stands in for the module's logger and keeps what is said."""

    def __init__(self):
        self.said = []

    def __getattr__(self, level):
        if level in ("warning", "warning_once"):
            return lambda message, *_: self.said.append(str(message))
        return lambda *_, **__: None


class Handed(Exception):
    """Carries what `generate` has made of the fields, at the point where it turns to decoding."""


class Halting(LlamaForCausalLM):
    """A tiny model whose `generate` stops once everything is settled."""

    with_processors = False

    def _get_logits_processor(self, generation_config, **arguments):
        processors = None
        if self.with_processors:
            processors = super()._get_logits_processor(generation_config, **arguments)
        raise Handed(generation_config, processors)


def tiny_model() -> Halting:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Halting(LlamaConfig(vocab_size=VOCAB, **sizes))


def any_mode(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    """Given as `custom_generate`, it lets modes pass that HF has moved to the hub."""


def fields(rng: random.Random, most: int, with_none: bool = False) -> dict:
    """A few fields with values."""
    names = rng.sample([it for it in VALUES if it not in RARE or rng.random() < 0.1], rng.randint(0, most))
    names += [it for it in FREQUENT if it not in names and rng.random() < 0.2]
    drawn = {name: rng.choice(VALUES[name]) for name in names}
    if rng.random() < 0.06:
        name = rng.choice(list(REFUSED))
        drawn[name] = rng.choice(REFUSED[name])
    for name in drawn:
        # HF computes with these two, and an explicit None breaks the sum.
        if with_none and name not in ("num_beams", "num_return_sequences") and rng.random() < 0.12:
            drawn[name] = None
    return drawn


def field_at_fault(error: Exception) -> str:
    """The field that HF's message is about; it is the first one in backticks."""
    unused = re.search(r"`model_kwargs` are not used by the model: (\[.*?\])", str(error))
    if unused:
        return ast.literal_eval(unused[1])[0]
    return re.search(r"`(\w+)`", str(error))[1]


def idle_fields(said: list[str]) -> list[str]:
    """The fields that `validate` warns of."""
    found = []
    for message in said:
        if listed := re.search(r"may be ignored: (\[.*?\])", message):
            found += ast.literal_eval(listed[1])
        elif message.startswith("`max_cache_len`"):
            found.append("max_cache_len")
    return sorted(found)


def length_fields(said: list[str]) -> list[str]:
    """The fields that the length checks warn of."""
    found, unfeasible = set(), set()
    for message in said:
        if message.startswith("Both `max_new_tokens`") or message.startswith("Using the model-agnostic"):
            found.add("max_length")
        elif message.startswith("Both `min_new_tokens`"):
            found.add("min_length")
        elif message.startswith("Unfeasible length constraints"):
            unfeasible.add(re.search(r"`(\w+)`", message)[1])
        elif message.startswith("`eos_token_id` should"):
            found.add("eos_token_id")
    # HF derives `min_length` from `min_new_tokens` and then warns of both.
    if "min_new_tokens" in unfeasible:
        unfeasible = {"min_new_tokens"}
    return sorted(found | unfeasible)


def plain(value):
    """A field's value as JSON has it."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value


def outcome(model: Halting, case: dict, inputs: torch.Tensor, mask: torch.Tensor) -> tuple[dict, list]:
    """What `generate` made of a case, and the processors it would have used."""
    notes, late = Notes(), Notes()
    configuration_utils.logger, utils.logger = notes, late
    validate = GenerationConfig.validate

    def last_validation_only(self, *arguments, **named):
        notes.said.clear()
        return validate(self, *arguments, **named)

    GenerationConfig.validate = last_validation_only
    at = "model"
    try:
        model.generation_config = GenerationConfig(**case["model"])
        at = "passed"
        passed = GenerationConfig(**case["passed"])
        at = "generate"
        model.config.max_position_embeddings = case["max_position_embeddings"]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                model.generate(
                    inputs,
                    attention_mask=mask,
                    generation_config=passed,
                    custom_generate=any_mode,
                    **case["kwargs"],
                )
            except Handed as handed:
                config, processors = handed.args
            late.said += [str(it.message) for it in caught]
    except TypeError as error:
        # An explicit `max_length=None` with nothing else: HF adds to None, and Python complains.
        assert "NoneType" in str(error), error
        return {"error": {"at": at, "field": "max_length"}}, []
    except ValueError as error:
        return {"error": {"at": at, "field": field_at_fault(error)}}, []
    finally:
        GenerationConfig.validate = validate
        configuration_utils.logger = configuration_utils.logging.get_logger(configuration_utils.__name__)
        utils.logger = utils.logging.get_logger(utils.__name__)

    defaults = GenerationConfig._get_default_generation_params()
    computed = ("max_length", "min_length", "transformers_version")
    merged = {
        key: plain(value)
        for key, value in vars(config).items()
        if key not in computed and not (key.startswith("_")) and value != defaults.get(key)
    }
    eos, pad = config._eos_token_tensor, config._pad_token_tensor
    return {
        "changed": merged,
        "max_length": config.max_length,
        "min_length": config.min_length or 0,
        "mode": config.get_generation_mode().value,
        "eos": None if eos is None else eos.tolist(),
        "pad": None if pad is None else pad.item(),
        "idle": idle_fields(notes.said),
        "odd": length_fields(late.said),
    }, processors


def write(out: pathlib.Path, kind: str, content: dict, lines_to: int = 2) -> None:
    """Writes a file of a kind; the reader goes by the kind, whatever the file is called."""
    head = {"made_by": _fixture.made_by("torch", "transformers"), "kind": kind}
    _fixture.write_json(out / f"{kind}.json", head | content, lines_to)


def record_merge(model: Halting, out: pathlib.Path) -> None:
    rng = random.Random(23)
    cases = []
    while len(cases) < MERGE_CASES:
        case = {
            "kwargs": fields(rng, 4, with_none=True),
            "passed": fields(rng, 5),
            "model": fields(rng, 5),
            "prompt_len": rng.choice([1, 3, 8, 15]),
            "max_position_embeddings": rng.choice([10, 30, 4096]),
        }
        # As an argument of `generate` it is not a mistake, and HF never looks at a `None` streamer.
        case["kwargs"].pop("streamer", None)
        ids = torch.randint(3, VOCAB - 1, (1, case["prompt_len"]))
        result, _ = outcome(model, case, ids, torch.ones_like(ids))
        # Checked where assisted generation is, not in the fields.
        assisted = any("prompt_lookup_num_tokens" in case[it] for it in ("kwargs", "passed", "model"))
        if assisted and result.get("error", {}).get("field") not in (None, "max_length"):
            continue
        cases.append(case | {"expect": result})
    write(out, "merge", {"cases": cases})


PROCESSING = [
    "min_length", "min_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p", "top_h",
    "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty", "encoder_repetition_penalty",
    "no_repeat_ngram_size", "bad_words_ids", "renormalize_logits", "forced_bos_token_id",
    "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty",
    "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "watermarking_config",
    "encoder_no_repeat_ngram_size", "eos_token_id",
]  # fmt: skip


def record_processors(model: Halting, out: pathlib.Path) -> None:
    rng = random.Random(42)
    torch.manual_seed(42)
    model.with_processors = True
    cases = []
    while len(cases) < PROCESSOR_CASES:
        share = rng.choice([0.15, 0.4, 1.0])
        names = [it for it in PROCESSING if rng.random() < share]
        prompt_len, padding = rng.choice([(1, 0), (4, 0), (9, 0), (7, 3)])
        case = {
            "kwargs": {name: rng.choice(VALUES[name]) for name in names} | {"max_new_tokens": 8},
            "passed": {},
            "model": {},
            "max_position_embeddings": 64,
        }
        if case["kwargs"].get("eos_token_id") in (None, -1):
            # HF builds this one without an end token, and torch complains of it.
            case["kwargs"].pop("exponential_decay_length_penalty", None)
            case["kwargs"].pop("eos_token_id", None)
        ids = torch.randint(3, VOCAB, (1, prompt_len))
        mask = torch.ones_like(ids)
        ids[:, :padding] = 0
        mask[:, :padding] = 0
        result, processors = outcome(model, case, ids, mask)
        if "error" in result:
            continue
        generated = rng.choice([0, 1, 3, 7])
        context = torch.cat([ids, torch.randint(3, VOCAB, (1, generated))], dim=1)
        scores = torch.round(torch.randn(1, VOCAB) * 3, decimals=4)
        try:
            processed = processors(context, scores)[0]
        except ValueError:
            # The bans left nothing, which torch's Categorical refuses to take the entropy of.
            continue
        if processed.isnan().any() or processed.isposinf().any():
            # JSON has no such numbers, and a strategy could not continue with them.
            continue
        cases.append({
            "kwargs": case["kwargs"],
            "prompt_len": prompt_len,
            "padding": padding,
            "context": context[0].tolist(),
            "names": [type(it).__name__ for it in processors],
            "scores": [round(it, 4) for it in scores[0].tolist()],
            # JSON has no -inf; null stands for it.
            "processed": [float(f"{it:.7g}") if it > float("-inf") else None for it in processed.tolist()],
        })  # fmt: skip
    write(out, "processors", {"vocab_size": VOCAB, "cases": cases})


MODEL_CONFIGS = [
    {"model_type": "llama", "bos_token_id": 1, "eos_token_id": [2, 7], "pad_token_id": None, "use_cache": True},
    {"model_type": "t", "eos_token_id": 2, "text_config": {"eos_token_id": 7, "bos_token_id": 1, "vocab_size": 24}},
    {"model_type": "t", "text_config": {}, "decoder": {"pad_token_id": 0, "temperature": 0.5}},
    {"decoder": {"pad_token_id": 0}, "text_config": {"pad_token_id": 3, "bos_token_id": 4}},
    {"output_hidden_states": True, "max_length": 33, "top_p": 0.9, "do_sample": True, "_commit_hash": "abc"},
    {"output_scores": False, "text_config": {"output_attentions": True, "use_cache": False}},
    {"return_dict": True, "output_logits": True, "return_dict_in_generate": False},
    {"vocab_size": 24, "rope_theta": 10000.0, "transformers_version": "4.30.0"},
]


def record_model_configs(out: pathlib.Path) -> None:
    cases = []
    for config in MODEL_CONFIGS:
        copy = json.loads(json.dumps(config))
        made = vars(GenerationConfig.from_model_config(copy))
        fields = {key: value for key, value in made.items() if value is not None and key != "_original_object_hash"}
        cases.append({"config": config, "expect": fields})
    write(out, "model_config", {"cases": cases})


def record_fields(out: pathlib.Path) -> None:
    defaults = GenerationConfig._get_default_generation_params()
    known = {key: value for key, value in defaults.items() if value is not None}
    write(out, "fields", {"fields": list(GenerationConfig().to_dict()), "defaults": known}, lines_to=1)


def record(out: pathlib.Path) -> None:
    torch.set_num_threads(1)
    model = tiny_model()
    record_fields(out)
    record_model_configs(out)
    record_merge(model, out)
    record_processors(model, out)
