"""mlx-lm as it is installed: its generate_step(), its processors and samplers."""

import itertools
import pathlib

import mlx.core as mx
import mlx_lm
import numpy
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_logits_processors, make_sampler
from mlx_lm.utils import load_model

import _peer


def load(folder, dtype):
    model, _ = load_model(pathlib.Path(folder))
    model.set_dtype(getattr(mx, dtype))
    mx.eval(model.parameters())
    return model


def generate(model, ids, new_tokens, on_token):
    for token, _ in generate_step(mx.array(ids), model, max_tokens=new_tokens):
        on_token(token)


def draw(task):
    fields = task["fields"]
    history = mx.array(task["history"])
    # The penalty looks at the whole history, as transformers' does; n-gram bans mlx-lm does not have.
    processors = make_logits_processors(
        repetition_penalty=fields.get("repetition_penalty"),
        repetition_context_size=len(task["history"]),
    )
    sampler = make_sampler(
        temp=fields["temperature"], top_p=fields["top_p"], top_k=fields["top_k"]
    )
    scores = numpy.fromfile(task["scores"], dtype=numpy.float32).reshape(-1, 1, task["vocab"])
    rows = itertools.cycle([mx.array(row) for row in scores])

    def step():
        # As in generate_step. The sum is a copy: a penalty writes into the array it is given.
        logits = next(rows) + 0.0
        for processor in processors:
            logits = processor(history, logits)
        return sampler(logits - mx.logsumexp(logits, keepdims=True)).item()

    return step


def first_token(folder, text):
    model, tokenizer = mlx_lm.load(folder)
    messages = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    tokens = []
    generate(model, ids, 1, tokens.append)
    return tokenizer.decode(tokens)


if __name__ == "__main__":
    _peer.main(["mlx-lm", "mlx"], load, generate, draw, first_token)
