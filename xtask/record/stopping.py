"""Area `stopping`: where transformers sees a stop string, and where it ends a generation.

Two kinds of files. `criteria`: token sequences of published kinds of tokenizers, and after which of
their tokens `StopStringCriteria` says stop. `generate`: the bundled model's text up to strings that
are taken from what it says without them, greedy, drawn, and with beams.
"""

import json
import pathlib
import tempfile

import numpy
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
from transformers.generation.stopping_criteria import StopStringCriteria
from transformers.utils import logging

import _fixture
import models
from _cases import ends_of, noisy
from beams import described

BUNDLED = pathlib.Path(__file__).resolve().parent.parent.parent / "crates/mlx-genkit/bundled"
TOKENIZERS = ("byte-level", "gemma", "llama2", "unigram")
SEQUENCES, LENGTH = 24, 40
NEW_TOKENS = 40
PROMPTS = (
    "Once upon a time there was a fox", "The harbour is quiet today, and", "Hello! Who are you?",
    "Tell me about the sea.", "In the morning the", "She said that he",
)  # fmt: skip


def record(out: pathlib.Path) -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    for name in TOKENIZERS:
        source = _fixture.read_json(out.parent / "templates" / f"tokenizer-{name}.json")
        _fixture.write_json(out / f"criteria-{name}.json", criteria(source["files"], name), lines_to=2)
    _fixture.write_json(out / "generate-bundled.json", generated(), lines_to=2)
    _fixture.write_json(out / "beams-bundled.json", searched(), lines_to=2)


def criteria(files: dict, name: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        for file, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (pathlib.Path(folder) / file).write_text(text, encoding="utf-8")
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json")
    rng = numpy.random.default_rng(sum(name.encode()))
    vocab = sorted(tokenizer.get_vocab().values())
    cases = []
    for index in range(SEQUENCES):
        ids = rng.choice(vocab, LENGTH).tolist()
        strings = draw_strings(rng, tokenizer, ids)
        if not strings:
            continue
        criterion = StopStringCriteria(tokenizer, strings)
        stops = [n for n in range(1, LENGTH + 1) if criterion(torch.tensor([ids[:n]]), None).item()]
        cases.append({"strings": strings, "ids": ids, "stops": stops})
    if sum(bool(it["stops"]) for it in cases) < len(cases) // 2:
        raise SystemExit(f"{name}: too few sequences stop")
    return {"made_by": _fixture.made_by("tokenizers", "transformers"), "kind": "criteria", "files": files, "cases": cases}


def draw_strings(rng, tokenizer, ids: list[int]) -> list[str]:
    """Pieces of the decoded text, and one that is not in it."""
    strings = []
    for _ in range(int(rng.integers(1, 4))):
        at, count = int(rng.integers(0, len(ids) - 4)), int(rng.integers(1, 4))
        text = tokenizer.decode(ids[at : at + count]).replace("\ufffd", "")
        start = int(rng.integers(0, 2))
        piece = text[start : max(start + 1, len(text) - int(rng.integers(0, 2)))]
        if piece:
            strings.append(piece)
    return strings + (["no such text"] if rng.integers(0, 2) else [])


def generated() -> dict:
    model = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    rng, cases = numpy.random.default_rng(5), []
    for index, text in enumerate(PROMPTS * 4):
        config = {"max_new_tokens": NEW_TOKENS, "do_sample": index % 2 == 1, "eos_token_id": [], "pad_token_id": 0}
        batch = [text] if index % 3 else [text, "Good evening"]
        prompts = [tokenizer(it).input_ids for it in batch]
        seed = 100 + index
        said = tokenizer.decode(run(model, tokenizer, prompts, seed, config)[0][:-4])
        at = int(rng.integers(3, max(4, len(said) - 6)))
        strings = [said[at : at + int(rng.integers(1, 6))]]
        if index % 4 == 0:
            # Begins in the prompt.
            strings.append(text[-2:] + said[:1])
        config["stop_strings"] = strings
        rows = run(model, tokenizer, prompts, seed, config)
        with noisy(model, rng):
            if run(model, tokenizer, prompts, seed, config) != rows:
                continue
        criterion = StopStringCriteria(tokenizer, strings)
        rows = [until_stop(criterion, prompt, row) for prompt, row in zip(prompts, rows)]
        cases.append({
            "name": f"{index}: {text}", "config": config, "seed": seed if config["do_sample"] else None,
            "prompts": prompts, "tokens": [row for row, _ in rows], "finish_reasons": [why for _, why in rows],
        })  # fmt: skip
    return {
        "made_by": _fixture.made_by("torch", "transformers"),
        "kind": "generate",
        "model": "../../crates/mlx-genkit/bundled",
        "cases": cases,
    }


def searched() -> dict:
    """Beams: a criterion is asked of every continuation in the choice."""
    model = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    ends = ends_of({"eos_token_id": model.generation_config.eos_token_id})
    rng, cases = numpy.random.default_rng(6), []
    for index, text in enumerate(PROMPTS * 3):
        config = {
            "max_new_tokens": 20, "do_sample": index % 4 == 3, "num_beams": 2 + index % 4, "num_return_sequences": 2,
            "early_stopping": (False, True, "never")[index % 3], "length_penalty": (1.0, 0.3)[index % 2],
        }  # fmt: skip
        batch = [text] if index % 3 else [text, "Good evening"]
        prompts = [tokenizer(it).input_ids for it in batch]
        plain = beams(model, tokenizer, prompts, index, config, ends)["tokens"]
        said = tokenizer.decode(plain[int(rng.integers(0, 2))], skip_special_tokens=True)
        at = int(rng.integers(2, max(3, len(said) - 6)))
        strings = [said[at : at + int(rng.integers(1, 6))]]
        if index % 2:
            at = int(rng.integers(2, max(3, len(said) - 6)))
            strings.append(said[at : at + 2])
        config["stop_strings"] = [it for it in strings if it]
        found = beams(model, tokenizer, prompts, index, config, ends)
        with noisy(model, rng):
            shaky = beams(model, tokenizer, prompts, index, config, ends)["tokens"]
        if found["tokens"] in (plain, []) or shaky != found["tokens"]:
            continue
        criterion = StopStringCriteria(tokenizer, config["stop_strings"])
        of = [prompt for prompt in prompts for _ in range(config["num_return_sequences"])]
        reasons = [
            "eos" if row[-1] in ends else until_stop(criterion, prompt, row)[1]
            for prompt, row in zip(of, found["tokens"])
        ]
        cases.append({
            "name": f"{index}: {text}", "config": config, "seed": index if config["do_sample"] else None,
            "prompts": prompts, "tokens": found["tokens"], "finish_reasons": reasons,
        })  # fmt: skip
    if len(cases) < 8:
        raise SystemExit(f"{len(cases)} searches that stop are too few")
    return {
        "made_by": _fixture.made_by("torch", "transformers"),
        "kind": "generate",
        "model": "../../crates/mlx-genkit/bundled",
        "cases": cases,
    }


def beams(model, tokenizer, prompts, seed: int, config: dict, ends: list[int]) -> dict:
    """The sequences of a search, cut where they end."""
    ids, mask = models.left_padded(prompts, 0)
    torch.manual_seed(seed)
    out = model.generate(
        ids, attention_mask=mask, generation_config=GenerationConfig(**config), tokenizer=tokenizer,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    return described(out, ids.shape[1], ends)


def run(model, tokenizer, prompts, seed: int, config: dict) -> list[list[int]]:
    ids, mask = models.left_padded(prompts, 0)
    torch.manual_seed(seed)
    sequences = model.generate(
        ids, attention_mask=mask, generation_config=GenerationConfig(**config), tokenizer=tokenizer)
    return sequences[:, ids.shape[1] :].tolist()


def until_stop(criterion, prompt: list[int], row: list[int]) -> tuple[list[int], str]:
    """The row up to the token that stopped it; without end tokens HF goes on while another row does."""
    for n in range(1, len(row) + 1):
        if criterion(torch.tensor([prompt + row[:n]]), None).item():
            return row[:n], "stop_string"
    return row, "length"
