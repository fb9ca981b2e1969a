"""What transformers' processors and watermark detectors make of random rows.

A case is a class, its parameters and the rows of one batch. The scores of small vocabularies are
stored; those of large ones both sides draw from torch's generator under the case's seed, and of
the result only what changed is stored, or a sample where everything did.
"""

import itertools
import math
import pathlib
import warnings

import numpy
import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig
from transformers.generation import logits_process as hf
from transformers.generation import watermarking
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import logging

import _fixture

STORED = [8, 32]
DRAWN = [1000, 32000, 151936]
PAD = 0
# In a sparse result this many entries stand for a row that changed everywhere.
SAMPLE = 48


def record(out: pathlib.Path) -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    made_by = _fixture.made_by("torch", "transformers")
    for name, cases in processors().items():
        seeds = itertools.count(zlib_seed(name))
        recorded = [record_case(make, case, next(seeds)) for make, case in cases]
        _fixture.write_json(out / f"{name}.json", {"made_by": made_by, "class": name, "cases": recorded})
    for name, cases in {
        "lists": list_cases(),
        "errors": error_cases(),
        "WatermarkDetector": watermark_detector_cases(),
        "SynthIDTextWatermarkDetector": synthid_detector_cases(),
        "generator": generator_cases(),
    }.items():
        _fixture.write_json(out / f"{name}.json", {"made_by": made_by, "cases": list(cases)})


def zlib_seed(name: str) -> int:
    """A seed of a class's own, so that adding a class leaves the other files alone."""
    return int.from_bytes(name.encode()[:3] + name.encode()[-3:], "big") % 1_000_000


# Rows


def text(rng, vocab: int, length: int, beyond: int = 0) -> list[int]:
    """Tokens that repeat themselves; `beyond` of the ids used are not in the vocabulary."""
    used = rng.choice(vocab, size=min(vocab, max(4, length // 6)), replace=False)
    used = numpy.concatenate([used, vocab + rng.integers(0, 9, size=beyond)])
    tokens = used[rng.integers(0, len(used), size=length)].tolist()
    # The end stands earlier, too, so that n-grams repeat.
    at = length // 3
    for back in range(1, min(4, at)):
        tokens[-back] = tokens[at - back]
    return tokens


def batch(rng, vocab: int, lengths=(14, 9), paddings=(0, 3), beyond: int = 0) -> list[dict]:
    """Rows of one length and prompt length, the first `padding` tokens of each being pads."""
    length, prompt_len = lengths
    rows = []
    for at, padding in enumerate(paddings):
        tokens = [PAD] * padding + text(rng, vocab, length - padding, beyond)
        rows.append({"tokens": tokens, "prompt_len": prompt_len, "padding": padding, "row": at})
    return rows


def sizes():
    """Every vocabulary with a generator and rows; long histories for the large ones."""
    for vocab in STORED + DRAWN:
        rng = numpy.random.default_rng([vocab, 11])
        lengths = (14, 9) if vocab in STORED else (80, 50)
        yield vocab, rng, lambda rng=rng, vocab=vocab, lengths=lengths, **more: batch(rng, vocab, **{"lengths": lengths, **more})


def case(parameters: dict, vocab: int, rows: list[dict], banned: float = 0.1, **more) -> dict:
    return {"parameters": parameters, "vocab": vocab, "rows": rows, "banned": banned, **more}


def ids(rows: list[dict]) -> torch.Tensor:
    return torch.tensor([row["tokens"] for row in rows])


# Scores


def draw_scores(seed: int, rows: int, vocab: int, banned: float) -> torch.Tensor:
    """Both sides make these: uniform numbers, then a second row of them that says what is banned."""
    draws = torch.rand(2, rows, vocab, generator=torch.Generator().manual_seed(seed))
    scores = (draws[0] - 0.5) * 16
    return scores.masked_fill(draws[1] < banned, -math.inf)


def number(value: float):
    """An fp32 number in its shortest spelling; JSON has no infinities."""
    return float(str(numpy.float32(value))) if math.isfinite(value) else str(value)


def numbers(row: torch.Tensor) -> list:
    return [number(it) for it in row.tolist()]


def result(before: torch.Tensor, after: torch.Tensor) -> dict:
    """A large row: what changed, or a sample, a count and a sum where most did."""
    changed = (before != after).nonzero().flatten().tolist()
    if len(changed) <= 4 * SAMPLE:
        return {"changed": [[at, number(after[at].item())] for at in changed]}
    finite = after.isfinite()
    step = max(1, len(changed) // SAMPLE)
    sampled = changed[::step] + [after.argmax().item()]
    return {
        "sampled": [[at, number(after[at].item())] for at in sampled],
        "banned": int((after == -math.inf).sum()),
        "sum": after[finite].double().sum().item(),
    }


def record_case(make, case: dict, seed: int) -> dict:
    """Runs the processor that `make` builds from parameters and rows; draws again where that one
    answers None, because a tie decides."""
    vocab = case["vocab"]
    spoil = case.pop("spoil", lambda scores: scores)
    for seed in itertools.count(seed, 1_000_003):
        rows = [dict(row) for row in case["rows"]]
        before = draw_scores(seed, len(rows), vocab, case["banned"])
        for at, token in case.get("also_banned", []):
            before[at, token] = -math.inf
        before = spoil(before)
        after = make(case["parameters"], rows, seed)(ids(rows), before.clone())
        if after is not None:
            break
    for at, row in enumerate(rows):
        if vocab in STORED:
            row.update(scores=numbers(before[at]), expected=numbers(after[at]))
        else:
            row.update(expected=result(before[at], after[at]))
    return {**case, "rows": rows, "seed": seed}


# The classes


def plain(cls, *names):
    """A class that takes the parameters of these names, in order."""

    def make(parameters, _rows, _seed):
        return cls(*[parameters[name] for name in names if name in parameters])

    return make


def processors() -> dict[str, list]:
    """For each class its cases, with the function that builds the processor."""
    return {
        "RepetitionPenaltyLogitsProcessor": list(repetition()),
        "EncoderRepetitionPenaltyLogitsProcessor": list(encoder_repetition()),
        "NoRepeatNGramLogitsProcessor": list(no_repeat()),
        "EncoderNoRepeatNGramLogitsProcessor": list(encoder_no_repeat()),
        "SequenceBiasLogitsProcessor": list(sequence_bias()),
        "NoBadWordsLogitsProcessor": list(bad_words()),
        "MinLengthLogitsProcessor": list(min_length()),
        "MinNewTokensLengthLogitsProcessor": list(min_new_tokens()),
        "PrefixConstrainedLogitsProcessor": list(prefix()),
        "ForcedBOSTokenLogitsProcessor": list(forced_bos()),
        "ForcedEOSTokenLogitsProcessor": list(forced_eos()),
        "InfNanRemoveLogitsProcessor": list(inf_nan()),
        "ExponentialDecayLengthPenalty": list(decay()),
        "SuppressTokensLogitsProcessor": list(suppress()),
        "SuppressTokensAtBeginLogitsProcessor": list(suppress_at_begin()),
        "LogitNormalization": list(normalization()),
        "UnbatchedClassifierFreeGuidanceLogitsProcessor": list(guidance()),
        "WatermarkLogitsProcessor": list(watermark()),
        "SynthIDTextWatermarkLogitsProcessor": list(synthid()),
    }


def repetition():
    def make(parameters, rows, _seed):
        ignore = parameters.get("prompt_ignore_length")
        if ignore is None and any(row["padding"] for row in rows):
            # What generate() passes when there is an attention mask with zeros.
            ignore = torch.tensor([row["padding"] for row in rows])
        return hf.RepetitionPenaltyLogitsProcessor(parameters["penalty"], ignore)

    for vocab, _, rows in sizes():
        for penalty, beyond in [(1.3, 0), (0.7, 1), (50.0, 0)]:
            yield make, case({"penalty": penalty}, vocab, rows(beyond=beyond))
        yield make, case({"penalty": 1.1, "prompt_ignore_length": 6}, vocab, rows())
        yield make, case({"penalty": 1.1, "prompt_ignore_length": 99}, vocab, rows(paddings=(0,)))
    long = batch(numpy.random.default_rng(5), 151936, lengths=(512, 500), paddings=(0, 40))
    yield make, case({"penalty": 1.2}, 151936, long)


def encoder_ids(rng, vocab: int, rows: int, length: int = 11) -> list[list[int]]:
    return [text(rng, vocab, length) for _ in range(rows)]


def source(parameters, rows) -> torch.Tensor:
    """The encoder's ids: given, or the padded prompt as in decoder-only models."""
    prompts = [row["tokens"][: row["prompt_len"]] for row in rows if row.get("beam", 0) == 0]
    return torch.tensor(parameters.get("encoder_input_ids", prompts))


def encoder_repetition():
    def make(parameters, rows, _seed):
        return hf.EncoderRepetitionPenaltyLogitsProcessor(parameters["penalty"], source(parameters, rows))

    for vocab, rng, rows in sizes():
        for penalty in (1.5, 0.4):
            yield make, case({"penalty": penalty}, vocab, rows())
        yield make, case({"penalty": 2.0, "encoder_input_ids": encoder_ids(rng, vocab, 2)}, vocab, rows())
        yield make, case({"penalty": 1.2}, vocab, beams(rows(), 3))


def beams(rows: list[dict], count: int) -> list[dict]:
    """Each row `count` times, the generated part in another order in each."""
    spread = []
    for row in rows:
        for beam in range(count):
            prompt, said = row["tokens"][: row["prompt_len"]], row["tokens"][row["prompt_len"] :]
            said = said[beam % max(1, len(said)) :] + said[: beam % max(1, len(said))]
            spread.append({**row, "tokens": prompt + said, "beam": beam})
    return spread


def no_repeat():
    make = plain(hf.NoRepeatNGramLogitsProcessor, "ngram_size")
    for vocab, _, rows in sizes():
        for size, beyond in [(1, 0), (2, 2), (3, 0), (4, 0)]:
            yield make, case({"ngram_size": size}, vocab, rows(beyond=beyond))
        for size in (3, 4, 5):
            yield make, case({"ngram_size": size}, vocab, rows(lengths=(4, 2), paddings=(0,)))
    long = batch(numpy.random.default_rng(6), 151936, lengths=(512, 100), paddings=(0, 40))
    for size in (2, 3):
        yield make, case({"ngram_size": size}, 151936, long)


def encoder_no_repeat():
    def make(parameters, rows, _seed):
        return hf.EncoderNoRepeatNGramLogitsProcessor(parameters["ngram_size"], source(parameters, rows))

    for vocab, rng, rows in sizes():
        for size in (1, 2, 3):
            drawn = rows()
            for row in drawn:
                # The end repeats the prompt's beginning.
                at, end = row["padding"], size - 1
                row["tokens"][len(row["tokens"]) - end :] = row["tokens"][at : at + end]
            yield make, case({"ngram_size": size}, vocab, drawn)
        given = encoder_ids(rng, vocab, 2)
        drawn = beams(rows(paddings=(0, 0)), 2)
        for row in drawn:
            row["tokens"][-1] = given[row["row"]][4 - row["beam"]]
        yield make, case({"ngram_size": 2, "encoder_input_ids": given}, vocab, drawn)
        yield make, case({"ngram_size": 5}, vocab, rows(lengths=(3, 2), paddings=(0,)))


def endings(rng, vocab: int, rows: list[dict]) -> list[list[int]]:
    """Sequences of several lengths: some whose beginning has just been said, some not."""
    found = [[int(token)] for token in rng.choice(vocab, 3, replace=False)]
    for row in rows:
        last = int(rng.integers(0, vocab))
        for length in (1, 2, 4):
            found.append(row["tokens"][-length:] + [last])
            found.append(row["tokens"][-length:] + [int(rng.integers(0, vocab))])
        found.append([(row["tokens"][-1] + 1) % vocab, int(rng.integers(0, vocab))])
        found.append(row["tokens"] + [last])
        found.append([1] + row["tokens"] + [last])
    return found


def sequence_bias():
    def make(parameters, _rows, _seed):
        return hf.SequenceBiasLogitsProcessor([[it, float(bias)] for it, bias in parameters["sequence_bias"]])

    for vocab, rng, rows in sizes():
        for values in ([1.5, -2.25, 0.1, 10.0, -0.7], [0.1, 0.2, -math.inf, 0.3]):
            drawn = rows()
            sequences = endings(rng, vocab, drawn)
            # One is given twice: the last bias counts.
            sequences.append(sequences[0])
            biases = [[it, number(values[at % len(values)])] for at, it in enumerate(sequences)]
            yield make, case({"sequence_bias": biases}, vocab, drawn)
        short = rows(lengths=(1, 1), paddings=(0,))
        only = short[0]["tokens"][0]
        yield make, case({"sequence_bias": [[[only, 3], 2.0], [[only, only, 3], 1.0]]}, vocab, short)


def bad_words():
    def make(parameters, _rows, _seed):
        return hf.NoBadWordsLogitsProcessor(parameters["bad_words_ids"], parameters.get("eos_token_id"))

    for vocab, rng, rows in sizes():
        drawn = rows()
        words = endings(rng, vocab, drawn)
        yield make, case({"bad_words_ids": words}, vocab, drawn)
        yield make, case({"bad_words_ids": words, "eos_token_id": [words[0][0], 5]}, vocab, drawn)
        yield make, case({"bad_words_ids": [[2]], "eos_token_id": [2]}, vocab, rows())


def min_length():
    make = plain(hf.MinLengthLogitsProcessor, "min_length", "eos_token_id")
    for vocab, _, rows in sizes():
        drawn = rows()
        length = len(drawn[0]["tokens"])
        for minimum, eos in [(length + 1, [2]), (length, [2]), (0, [2]), (length + 9, [1, vocab - 1, vocab + 4])]:
            yield make, case({"min_length": minimum, "eos_token_id": eos}, vocab, rows())


def min_new_tokens():
    def make(parameters, rows, _seed):
        return hf.MinNewTokensLengthLogitsProcessor(
            rows[0]["prompt_len"], parameters["min_new_tokens"], parameters["eos_token_id"]
        )

    for vocab, _, rows in sizes():
        drawn = rows()
        new = len(drawn[0]["tokens"]) - drawn[0]["prompt_len"]
        for minimum, eos in [(new + 1, [2]), (new, [2]), (0, [2]), (new + 7, [1, vocab - 1, vocab + 4])]:
            yield make, case({"min_new_tokens": minimum, "eos_token_id": eos}, vocab, rows())


def prefix():
    def make(parameters, _rows, _seed):
        table = parameters["table"]

        def allowed(batch_id, sent):
            """Which tokens follow is looked up by the prompt and the last token."""
            of_prompt = table[batch_id % len(table)]
            return of_prompt[sent[-1].item() % len(of_prompt)]

        return hf.PrefixConstrainedLogitsProcessor(allowed, parameters["num_beams"])

    for vocab, rng, rows in sizes():
        for count, banned in [(1, 0.1), (2, 0.3), (3, 0.6)]:
            table = [[rng.choice(vocab, 3).tolist() for _ in range(4)] for _ in range(2)]
            drawn = beams(rows(paddings=(0, 0)), count)
            yield make, case({"table": table, "num_beams": count}, vocab, drawn, banned)
            # All that the first prompt may say is banned on each of its beams, or on all but one.
            for alive in (0, 1):
                ban = [
                    (at, token)
                    for at, row in enumerate(drawn)
                    if row["row"] == 0 and row["beam"] >= alive
                    for token in table[0][row["tokens"][-1] % 4]
                ]
                yield make, case({"table": table, "num_beams": count}, vocab, drawn, banned, also_banned=ban)


def forced_bos():
    make = plain(hf.ForcedBOSTokenLogitsProcessor, "bos_token_id")
    for vocab, _, rows in sizes():
        yield make, case({"bos_token_id": 3}, vocab, rows(lengths=(1, 1), paddings=(0, 0)))
        yield make, case({"bos_token_id": 3}, vocab, rows(lengths=(2, 1), paddings=(0,)))


def forced_eos():
    make = plain(hf.ForcedEOSTokenLogitsProcessor, "max_length", "eos_token_id")
    for vocab, _, rows in sizes():
        length = len(rows()[0]["tokens"])
        for maximum, eos in [(length + 1, [2]), (length + 1, [vocab - 1, 0]), (length, [2]), (length + 2, [2])]:
            yield make, case({"max_length": maximum, "eos_token_id": eos}, vocab, rows())


def inf_nan():
    make = plain(hf.InfNanRemoveLogitsProcessor)

    def spoil(before):
        before[:, 1], before[:, 2], before[0, 3] = math.nan, math.inf, -math.inf
        return before

    for vocab, _, rows in sizes():
        yield make, case({}, vocab, rows())
    for vocab in STORED:
        drawn = batch(numpy.random.default_rng(9), vocab)
        yield make, case({}, vocab, drawn, spoil=spoil)


def decay():
    def make(parameters, rows, _seed):
        return hf.ExponentialDecayLengthPenalty(
            (parameters["start"], parameters["factor"]), parameters["eos_token_id"], rows[0]["prompt_len"]
        )

    for vocab, _, rows in sizes():
        drawn = rows()
        new = len(drawn[0]["tokens"]) - drawn[0]["prompt_len"]
        for start, factor, eos in [
            (0, 1.01, [2]), (new - 1, 1.5, [2, 5]), (new, 1.5, [2]), (1, 0.9, [1, 2, 3, 4]), (2, 2.0, [0, 7]),
            (0, -1.3, [6, 2]),
        ]:  # fmt: skip
            yield make, case({"start": start, "factor": factor, "eos_token_id": eos}, vocab, rows(), 0.3)


def suppress():
    make = plain(hf.SuppressTokensLogitsProcessor, "suppress_tokens")
    for vocab, rng, rows in sizes():
        tokens = rng.choice(vocab, min(vocab // 2, 90), replace=False).tolist()
        yield make, case({"suppress_tokens": tokens}, vocab, rows())
        yield make, case({"suppress_tokens": [1, vocab, vocab + 8]}, vocab, rows())


def suppress_at_begin():
    def make(parameters, rows, _seed):
        begin = rows[0]["prompt_len"] + (parameters["after_forced_bos"] and rows[0]["prompt_len"] <= 1)
        return hf.SuppressTokensAtBeginLogitsProcessor(parameters["begin_suppress_tokens"], begin)

    for vocab, _, rows in sizes():
        for length, prompt_len, bos in [(5, 5, False), (6, 5, False), (1, 1, True), (2, 1, True), (4, 4, True)]:
            parameters = {"begin_suppress_tokens": [1, 6, vocab + 2], "after_forced_bos": bos}
            yield make, case(parameters, vocab, rows(lengths=(length, prompt_len), paddings=(0,)))


def normalization():
    make = plain(hf.LogitNormalization)
    for vocab, _, rows in sizes():
        for banned in (0.0, 0.4):
            yield make, case({}, vocab, rows(), banned)


def guidance():
    def make(parameters, rows, seed):
        unconditional = draw_scores(seed + 1, len(rows), parameters["vocab"], 0.0)
        if parameters["vocab"] in STORED:
            for at, row in enumerate(rows):
                row["unconditional"] = numbers(unconditional[at])

        def model(*_args, **_kwargs):
            return CausalLMOutputWithPast(logits=unconditional[:, None])

        return hf.UnbatchedClassifierFreeGuidanceLogitsProcessor(parameters["guidance_scale"], model)

    for vocab, _, rows in sizes():
        for scale in (1.5, 3.0, 0.5, -1.0):
            yield make, case({"guidance_scale": scale, "vocab": vocab}, vocab, rows(), 0.1 if scale > 0 else 0.0)


def watermark():
    def make(parameters, rows, _seed):
        processor = hf.WatermarkLogitsProcessor(device="cpu", **parameters)

        def run(input_ids, scores):
            if parameters["seeding_scheme"] == "selfhash":
                best = scores.sort(dim=-1, descending=True).values[:, :41]
                if (best.diff() == 0).any():
                    return None
            return processor(input_ids, scores)

        return run

    for vocab, _, rows in sizes():
        left = {"vocab_size": vocab, "seeding_scheme": "lefthash"}
        yield make, case({**left, "greenlist_ratio": 0.25, "bias": 2.0, "hashing_key": 15485863, "context_width": 1}, vocab, rows())
        yield make, case({**left, "greenlist_ratio": 0.6, "bias": -1.5, "hashing_key": 2**61 + 7, "context_width": 3}, vocab, rows())
        yield make, case({**left, "greenlist_ratio": 0.1, "bias": 0.3, "hashing_key": -77, "context_width": 99}, vocab, rows())
        if vocab > 40:
            own = {"vocab_size": vocab, "seeding_scheme": "selfhash"}
            yield make, case({**own, "greenlist_ratio": 0.25, "bias": 2.0, "hashing_key": 15485863, "context_width": 1}, vocab, rows(), 0.0)
            yield make, case({**own, "greenlist_ratio": 0.5, "bias": 3.5, "hashing_key": 9_000_000_007, "context_width": 4}, vocab, rows(), 0.0)


def synthid():
    def make(parameters, rows, _seed):
        def run(input_ids, scores):
            return stepwise(parameters, rows, input_ids, scores)

        return run

    def stepwise(parameters, rows, input_ids, scores):
        """transformers' processor keeps its state from step to step, so all steps are made; what
        the earlier ones score does not matter."""
        processor = hf.SynthIDTextWatermarkLogitsProcessor(device="cpu", **parameters)
        for length in range(rows[0]["prompt_len"], input_ids.shape[1]):
            processor(input_ids[:, :length], torch.zeros(len(rows), 1))
        return processor(input_ids, scores)

    keys = [654, 400, 836, 123, 340, 443, 597, 160, 57, 29, 590, 639, 13, 715, 468, 990, 966, 226, 324, 585]
    for vocab, _, rows in sizes():
        base = {"sampling_table_size": 2**16, "sampling_table_seed": 0, "context_history_size": 1024}
        deep = keys[: {8: 2, 32: 3}.get(vocab, 20)]
        yield make, case({**base, "ngram_len": 5, "keys": deep}, vocab, rows())
        yield make, case({**base, "ngram_len": 5, "keys": deep}, vocab, rows(lengths=(6, 5)), 0.0)
        yield make, case({**base, "ngram_len": 2, "keys": deep[:9]}, vocab, rows(paddings=(0, 1, 2, 3)))
        yield make, case({**base, "ngram_len": 2, "keys": deep[:9], "context_history_size": 2}, vocab, rows(paddings=(0, 1, 2, 3)))
        yield make, case({**base, "ngram_len": 4, "keys": deep, "sampling_table_size": 1001, "sampling_table_seed": 5}, vocab, rows())
        yield make, case({**base, "ngram_len": 7, "keys": deep, "skip_first_ngram_calls": True}, vocab, rows())
        yield make, case({**base, "ngram_len": 3, "keys": [-5, 2**62], "skip_first_ngram_calls": True}, vocab, rows(lengths=(30, 4)))
        yield make, case({**base, "ngram_len": 5, "keys": deep, "debug_mode": True}, vocab, rows())
        yield make, case({**base, "ngram_len": 1, "keys": deep}, vocab, rows(lengths=(5, 5)))


# Lists


class Stub(GenerationMixin):
    """As much of a model as `_get_logits_processor` asks for."""

    def __init__(self, vocab: int):
        self.config = PreTrainedConfig(is_encoder_decoder=False, vocab_size=vocab)


def list_cases():
    """Processors as `generate` combines them, from the fields of a generation config."""
    full = {
        "sequence_bias": [[[1], 0.5], [[2, 3], -1.0]], "encoder_repetition_penalty": 1.2, "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 4, "bad_words_ids": [[4], [3, 5]],
        "min_length": 30, "min_new_tokens": 20, "exponential_decay_length_penalty": [1, 1.1],
        "suppress_tokens": [6, 9], "begin_suppress_tokens": [7], "renormalize_logits": True, "eos_token_id": [2, 8],
    }  # fmt: skip
    some = [
        full,
        {**full, "remove_invalid_values": True, "renormalize_logits": False},
        {**full, "forced_eos_token_id": [2], "max_length": 15, "renormalize_logits": False},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "eos_token_id": [2]},
        {"bad_words_ids": [[1], [2]], "min_new_tokens": 9, "suppress_tokens": [3], "eos_token_id": [2]},
        {"exponential_decay_length_penalty": [0, 1.5], "min_length": 3, "renormalize_logits": True, "eos_token_id": [5]},
        {"watermarking_config": {"greenlist_ratio": 0.3, "bias": 1.5}, "repetition_penalty": 1.1, "renormalize_logits": True},
        {"forced_bos_token_id": 3, "begin_suppress_tokens": [1], "eos_token_id": [2]},
    ]
    users = [
        [],
        [{"class": "RepetitionPenaltyLogitsProcessor", "parameters": {"penalty": 2.0}}],
        [
            {"class": "SuppressTokensLogitsProcessor", "parameters": {"suppress_tokens": [1]}},
            {"class": "NoRepeatNGramLogitsProcessor", "parameters": {"ngram_size": 1}},
            {"class": "SuppressTokensLogitsProcessor", "parameters": {"suppress_tokens": [2]}},
        ],
        [{"class": "LogitNormalization", "parameters": {}}],
    ]
    seeds = itertools.count(4000)
    for vocab in [*STORED[1:], *DRAWN[:2]]:
        rng = numpy.random.default_rng([vocab, 12])
        for at, (fields, user) in enumerate(itertools.product(some, users)):
            lengths = (1, 1) if "forced_bos_token_id" in fields else (14, 9)
            rows = batch(rng, vocab, lengths, paddings=(0, 0) if at % 2 or lengths == (1, 1) else (0, 3))
            yield record_list(fields, user, vocab, rows, next(seeds))


def record_list(fields: dict, user: list, vocab: int, rows: list[dict], seed: int) -> dict:
    made = [getattr(hf, it["class"])(*it["parameters"].values()) for it in user]
    config = GenerationConfig(**fields)
    eos = fields.get("eos_token_id")
    config._eos_token_tensor = None if eos is None else torch.tensor(eos)
    input_ids = ids(rows)
    prompt = input_ids[:, : rows[0]["prompt_len"]]
    mask = torch.tensor([[int(at >= row["padding"]) for at in range(prompt.shape[1])] for row in rows])
    # generate() passes no mask on when it masks nothing.
    model_kwargs = {} if mask.all() else {"attention_mask": mask}
    processors = Stub(vocab)._get_logits_processor(
        config, input_ids_seq_length=prompt.shape[1], encoder_input_ids=prompt,
        logits_processor=hf.LogitsProcessorList(made), device="cpu", model_kwargs=model_kwargs,
    )  # fmt: skip
    recorded = record_case(lambda *_: processors, case(fields, vocab, rows, 0.05), seed)
    return {**recorded, "user": user, "order": [type(it).__name__ for it in processors]}


# Errors


def error_cases():
    """Parameters that transformers refuses, on construction or when first used."""
    tokens, vocab = [1, 2, 1, 2], 8
    for name, parameters, build in [
        ("RepetitionPenaltyLogitsProcessor", {"penalty": -1.0}, lambda: hf.RepetitionPenaltyLogitsProcessor(-1.0)),
        ("RepetitionPenaltyLogitsProcessor", {"penalty": 0.0}, lambda: hf.RepetitionPenaltyLogitsProcessor(0.0)),
        ("EncoderRepetitionPenaltyLogitsProcessor", {"penalty": 0.0}, lambda: hf.EncoderRepetitionPenaltyLogitsProcessor(0.0, None)),
        ("EncoderRepetitionPenaltyLogitsProcessor", {"penalty": 1.5, "encoder_input_ids": [[8]]},
         lambda: hf.EncoderRepetitionPenaltyLogitsProcessor(1.5, torch.tensor([[8]]))),
        ("NoRepeatNGramLogitsProcessor", {"ngram_size": 0}, lambda: hf.NoRepeatNGramLogitsProcessor(0)),
        ("EncoderNoRepeatNGramLogitsProcessor", {"ngram_size": 0}, lambda: hf.EncoderNoRepeatNGramLogitsProcessor(0, None)),
        ("EncoderNoRepeatNGramLogitsProcessor", {"ngram_size": 2, "encoder_input_ids": [[2, 9]]},
         lambda: hf.EncoderNoRepeatNGramLogitsProcessor(2, torch.tensor([[2, 9]]))),
        ("SequenceBiasLogitsProcessor", {"sequence_bias": []}, lambda: hf.SequenceBiasLogitsProcessor([])),
        ("SequenceBiasLogitsProcessor", {"sequence_bias": [[[], 1.0]]}, lambda: hf.SequenceBiasLogitsProcessor({(): 1.0})),
        ("SequenceBiasLogitsProcessor", {"sequence_bias": [[[8], 1.0]]}, lambda: hf.SequenceBiasLogitsProcessor([[[8], 1.0]])),
        ("SequenceBiasLogitsProcessor", {"sequence_bias": [[[8, 1], 1.0]]}, lambda: hf.SequenceBiasLogitsProcessor([[[8, 1], 1.0]])),
        ("NoBadWordsLogitsProcessor", {"bad_words_ids": []}, lambda: hf.NoBadWordsLogitsProcessor([])),
        ("NoBadWordsLogitsProcessor", {"bad_words_ids": [[1, 9]]}, lambda: hf.NoBadWordsLogitsProcessor([[1, 9]])),
        ("PrefixConstrainedLogitsProcessor", {"table": [[[]]], "num_beams": 1}, lambda: hf.PrefixConstrainedLogitsProcessor(lambda *_: [], 1)),
        ("PrefixConstrainedLogitsProcessor", {"table": [[[8]]], "num_beams": 1}, lambda: hf.PrefixConstrainedLogitsProcessor(lambda *_: [8], 1)),
        ("ForcedEOSTokenLogitsProcessor", {"max_length": 5, "eos_token_id": [8]}, lambda: hf.ForcedEOSTokenLogitsProcessor(5, [8])),
        ("ExponentialDecayLengthPenalty", {"start": 0, "factor": 1.5, "eos_token_id": [8]},
         lambda: hf.ExponentialDecayLengthPenalty((0, 1.5), [8], 2)),
        *[
            ("WatermarkLogitsProcessor",
             {"vocab_size": 8, "greenlist_ratio": ratio, "bias": 2.0, "hashing_key": 7, "seeding_scheme": scheme, "context_width": 1},
             lambda ratio=ratio, scheme=scheme: hf.WatermarkLogitsProcessor(8, "cpu", ratio, 2.0, 7, scheme))
            for ratio, scheme in [(0.0, "lefthash"), (1.0, "lefthash"), (0.5, "righthash")]
        ],
    ]:  # fmt: skip
        try:
            processor = build()
        except ValueError as error:
            yield {"class": name, "parameters": parameters, "raised": "construction", "message": str(error)}
            continue
        try:
            processor(torch.tensor([tokens]), torch.zeros(1, vocab))
        except (ValueError, RuntimeError, IndexError) as error:
            found = {"class": name, "parameters": parameters, "raised": "use", "message": str(error)}
            yield {**found, "vocab": vocab, "tokens": tokens, "prompt_len": 2}
        else:
            raise AssertionError(f"{name} takes {parameters}")


# Detectors


def watermark_detector_cases():
    rng = numpy.random.default_rng(21)
    for vocab, length in [(20, 40), (150, 60), (32000, 50)]:
        for scheme, width, repeated, bos in [
            ("lefthash", 1, False, 1), ("lefthash", 2, True, 3), ("selfhash", 1, False, 1), ("selfhash", 3, True, 3),
        ]:  # fmt: skip
            for marked in (False, True):
                config = {"greenlist_ratio": 0.25, "bias": 4.0, "hashing_key": 15485863, "seeding_scheme": scheme, "context_width": width}
                tokens = [3] + text(rng, vocab, length - 1)
                if marked and vocab > 40:
                    tokens = marked_text(config, vocab, length)
                model_config = PreTrainedConfig(vocab_size=vocab, bos_token_id=bos)
                detector = watermarking.WatermarkDetector(model_config, "cpu", config, repeated)
                found = detector(torch.tensor([tokens]), z_threshold=2.5, return_dict=True)
                yield {
                    "parameters": {**config, "vocab_size": vocab}, "bos_token_id": bos, "ignore_repeated_ngrams": repeated,
                    "z_threshold": 2.5, "tokens": tokens, "expected": {key: value[0].item() for key, value in vars(found).items()},
                }  # fmt: skip


def marked_text(config: dict, vocab: int, length: int) -> list[int]:
    """The likeliest tokens under a watermark, over random scores."""
    processor = hf.WatermarkLogitsProcessor(vocab, "cpu", **config)
    tokens = [3] * config["context_width"]
    generator = torch.Generator().manual_seed(7)
    while len(tokens) < length:
        scores = torch.rand(1, vocab, generator=generator) * 6
        tokens.append(processor(torch.tensor([tokens]), scores)[0].argmax().item())
    return tokens


def synthid_detector_cases():
    rng = numpy.random.default_rng(22)
    keys = rng.integers(0, 1000, 12).tolist()
    for ngram_len, depth, history, length, end in [
        (5, 9, 1024, 40, None), (5, 12, 1024, 60, 41), (2, 5, 3, 40, 33), (3, 2, 1024, 20, None), (1, 4, 8, 9, 6),
        (4, 3, 1024, 20, 1),
    ]:  # fmt: skip
        parameters = {
            "ngram_len": ngram_len, "keys": keys[:depth], "sampling_table_size": 2**16, "sampling_table_seed": 3,
            "context_history_size": history,
        }  # fmt: skip
        processor = hf.SynthIDTextWatermarkLogitsProcessor(device="cpu", **parameters)
        tokens = torch.tensor([text(rng, 12, length)])
        eos = None if end is None else 12
        if end is not None:
            tokens[0, end] = eos
        g_values = processor.compute_g_values(tokens)
        repetition = processor.compute_context_repetition_mask(tokens)
        mask = repetition
        if eos is not None:
            mask = repetition * processor.compute_eos_token_mask(tokens, eos)[:, ngram_len - 1 :]
        model = watermarking.BayesianDetectorModel(watermarking.BayesianDetectorConfig(depth, 0.4))
        generator = torch.Generator().manual_seed(depth)
        with torch.no_grad():
            likelihood = model.likelihood_model_watermarked
            likelihood.beta.copy_(torch.randn(1, 1, depth, generator=generator))
            likelihood.delta.copy_(torch.randn(1, 1, depth, depth, generator=generator))
            # `forward` squeezes, so that a batch of one text would lose a dimension.
            posterior = model(g_values.repeat(2, 1, 1), mask.repeat(2, 1))[0][0].item()
        case = {
            "parameters": parameters, "tokens": tokens[0].tolist(), "eos_token_id": eos,
            "g_values": ["".join(map(str, row)) for row in g_values[0].tolist()],
            "context_repetition_mask": repetition[0].int().tolist(), "mask": mask[0].int().tolist(),
            "beta": numbers(likelihood.beta.flatten()), "delta": numbers(likelihood.delta.flatten()),
            "prior": number(model.prior.item()), "posterior": posterior,
            "expected_mean_g_value": [100, processor.expected_mean_g_value(100)],
        }  # fmt: skip
        yield {**case, **means(g_values[0].numpy(), mask[0].numpy())}


def means(g_values: numpy.ndarray, mask: numpy.ndarray) -> dict:
    """The scores of the paper's detectors, which transformers leaves out."""
    depth = g_values.shape[1]
    weights = numpy.linspace(10, 1, depth)
    weights *= depth / weights.sum()
    kept = g_values[mask.astype(bool)]
    if not len(kept):
        return {"mean": None, "weighted_mean": None}
    return {"mean": kept.mean().item(), "weighted_mean": (kept * weights).mean().item()}


# The generator


def generator_cases():
    for seed in (0, 7, 2**32 - 1, 2**32 + 5, 2**63 + 11):
        generator = torch.Generator().manual_seed(seed)

        def fresh():
            return generator.manual_seed(seed)

        yield {
            "seed": str(seed),
            "uniform_f32": numbers(torch.rand(9, generator=fresh())),
            # As multiples of 2^-53, which every JSON reader reads alike.
            "uniform_f64": [int(it * 2**53) for it in torch.rand(9, dtype=torch.float64, generator=fresh()).tolist()],
            "exponential_f32": numbers(torch.empty(9).exponential_(generator=fresh())),
            "randint": [
                [high, torch.randint(high, (5,), generator=fresh()).tolist()]
                for high in (2, 7, 2**20, 2**28 - 1, 2**28, 2**31, 2**32 + 1, 2**53)
            ],
            # The head of the permutation, and a draw after it.
            "randperm": [
                [n, torch.randperm(n, generator=fresh())[:12].tolist(), number(torch.rand(1, generator=generator).item())]
                for n in (1, 2, 20, 1000, 151936)
            ],
        }
