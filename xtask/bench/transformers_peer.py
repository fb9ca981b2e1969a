"""transformers on torch's CPU backend: its generate(), and its processors with torch's draw."""

import itertools
import pathlib
import sys

import numpy
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList
from transformers.generation import logits_process

import _peer


def load(folder, dtype):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))


class Streamer:
    """generate() hands it the prompt, then every token."""

    def __init__(self, on_token):
        self.on_token = on_token
        self.prompt_is_through = False

    def put(self, value):
        if self.prompt_is_through:
            self.on_token(value.item())
        self.prompt_is_through = True

    def end(self):
        pass


def generate(model, ids, new_tokens, on_token):
    ids = torch.tensor([ids])
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=new_tokens,
        streamer=Streamer(on_token),
    )


def answer(model, fields, prompts):
    ids = torch.tensor(prompts)
    output = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **fields)
    return output[:, ids.shape[1] :].flatten().tolist()


def draw(task):
    fields = task["fields"]
    processors = LogitsProcessorList()
    # In the order of generate()'s own list, and as there only where the field asks for something.
    for field, processor, neutral in [
        ("repetition_penalty", logits_process.RepetitionPenaltyLogitsProcessor, 1.0),
        ("no_repeat_ngram_size", logits_process.NoRepeatNGramLogitsProcessor, 0),
        ("temperature", logits_process.TemperatureLogitsWarper, 1.0),
        ("top_k", logits_process.TopKLogitsWarper, 0),
        ("top_p", logits_process.TopPLogitsWarper, 1.0),
    ]:
        if fields.get(field, neutral) != neutral:
            processors.append(processor(fields[field]))
    history = torch.tensor([task["history"]])
    scores = numpy.fromfile(task["scores"], dtype=numpy.float32).reshape(-1, 1, task["vocab"])
    rows = itertools.cycle(torch.from_numpy(scores))

    @torch.no_grad()
    def step():
        # As in _sample, which copies the logits too.
        processed = processors(history, next(rows).to(copy=True, dtype=torch.float32))
        probs = torch.nn.functional.softmax(processed, dim=-1)
        return torch.multinomial(probs, num_samples=1).item()

    return step


def first_token(folder, text):
    model, tokenizer = load(folder, "float32"), AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    tokens = []
    generate(model, ids, 1, tokens.append)
    return tokenizer.decode(tokens)


def train(folder, adapter, rows):
    """A function that makes one step with PEFT, and returns its loss."""
    sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent.parent / "build" / "venv" / "peft"))
    import peft

    model = peft.PeftModel.from_pretrained(load(folder, "float32"), adapter, is_trainable=True)
    trained = [it for it in model.parameters() if it.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    ids = torch.tensor(rows)

    def step():
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


if __name__ == "__main__":
    _peer.main(["transformers", "torch"], load, generate, draw, first_token, answer, train)
