"""What the other systems' programs have in common: a task in as JSON, a measurement out as JSON.

The tasks are those of mlxgk-measure (crates/bench/src/task.rs), and one more: `first_token`, which
the caller times from outside, from the start of the process to its end.
"""

import importlib.metadata
import json
import resource
import statistics
import sys
import time


def main(packages, load, generate, draw, first_token, answer=None, train=None):
    """Does the task on the command line and prints what was measured.

    load(folder, dtype) -> model
    generate(model, ids, new_tokens, on_token): greedy; hands over each token as it is chosen
    draw(task) -> a function that draws one token
    first_token(folder, text) -> the first word of the answer
    answer(model, fields, prompts) -> the new tokens of a whole request
    train(folder, adapter, rows) -> a function that makes one step and returns its loss
    """
    task = json.loads(sys.argv[1])
    if task["task"] == "generate":
        model = load(task["model"], task["dtype"])
        measured = measure_generate(task, lambda *request: timed(generate, model, *request))
    elif task["task"] == "request":
        measured = measure_request(task, load(task["model"], "float32"), answer)
    elif task["task"] == "growth":
        measured = measure_growth(task, load(task["model"], "float32"), generate)
    elif task["task"] == "train":
        measured = measure_training(task, train(task["model"], task["adapter"], task["rows"]))
    elif task["task"] == "draw":
        measured = {"microseconds": measure_draws(draw(task), task["draws"])}
    else:
        measured = {"text": first_token(task["model"], task["text"])}
    measured["versions"] = {name: importlib.metadata.version(name) for name in packages}
    print(json.dumps(measured))


def measure_generate(task, request):
    # The first request pays for threads and memory that the later ones find ready.
    request(task["prompt"], 2)
    decode, prefill = [], []
    for _ in range(task["repeats"]):
        tokens, _, rest = request(task["prompt"], task["new_tokens"])
        decode.append((len(tokens) - 1) / rest)
        _, first, _ = request(task["prefill"], 1)
        prefill.append(len(task["prefill"]) / first)
    return {
        "decode_tokens_per_second": statistics.median(decode),
        "prefill_tokens_per_second": statistics.median(prefill),
        "tokens": tokens,
        "peak_bytes": peak_bytes(),
    }


def peak_bytes():
    # macOS counts bytes here, Linux kibibytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure_request(task, model, answer):
    answer(model, task["fields"], task["prompts"])
    rates = []
    for _ in range(task["repeats"]):
        begun = time.perf_counter()
        tokens = answer(model, task["fields"], task["prompts"])
        rates.append(len(tokens) / (time.perf_counter() - begun))
    return {"tokens_per_second": statistics.median(rates), "tokens": tokens}


def measure_training(task, step):
    times, losses = [], []
    for _ in range(task["steps"]):
        begun = time.perf_counter()
        losses.append(step())
        times.append(time.perf_counter() - begun)
    tokens = sum(map(len, task["rows"]))
    # The first step pays for threads and memory that the later ones find ready.
    rate = tokens / statistics.median(times[1:])
    return {"tokens_per_second": rate, "losses": losses, "peak_bytes": peak_bytes()}


def measure_growth(task, model, generate):
    """One point for `every` tokens: tokens so far, microseconds per token."""
    generate(model, task["prompt"], 2, lambda token: None)
    times = []
    generate(model, task["prompt"], task["new_tokens"], lambda _: times.append(time.perf_counter()))
    every = task["every"]
    points = [
        [len(task["prompt"]) + at, (times[at] - times[at - every]) * 1e6 / every]
        for at in range(every, len(times), every)
    ]
    return {"points": points}


def timed(generate, model, ids, new_tokens):
    """The tokens, the seconds to the first of them, and the seconds from there to the last."""
    tokens, times = [], []

    def on_token(token):
        times.append(time.perf_counter())
        tokens.append(token)

    begun = time.perf_counter()
    generate(model, ids, new_tokens, on_token)
    return tokens, times[0] - begun, times[-1] - times[0]


def measure_draws(draw, count):
    for _ in range(3):
        draw()
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        draw()
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e6
