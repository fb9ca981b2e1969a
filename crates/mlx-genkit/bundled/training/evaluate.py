"""Measures the bundled model on what it was not trained on. Prints the tables of the README.

    python evaluate.py                      # everything, on the committed model
    python evaluate.py voices samples       # some of it
    python evaluate.py --model /tmp/try --count 100

voices      how often the word list hears the voice that was asked for, greedy and at temperature 0.8
moods       what is heard where the corpus leaves the mood to chance
grammar     articles, agreement, doubled and unknown words, the topic named, the answer ended
memory      how much of an answer the training corpus holds word for word
steering    whether a cheerful-minus-gloomy direction moves the moods
positions   the loss late in the context against the loss early in it
samples     one answer per voice, story and plain prose
"""

import argparse
import collections
import itertools
import pathlib
import random
import re

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import corpus as corpora
import lexicon
from grammar import all_topics, plural
from train import rows
from wordlist import voice_of

# What the committed weights were trained on: (seed, tokens, weight of the echo act) of each run.
TRAINED = [(20240607, 10_000_000, 9), (20240608, 2_000_000, 9)]
VOICES = ("cheerful", "gloomy", "formal", "pirate")


class Model:
    """The folder, through transformers, answering in batches."""

    def __init__(self, folder, seed):
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        torch.manual_seed(seed)

    @torch.no_grad()
    def answer(self, prompts, sample=False, batch=64, new_tokens=200):
        """Continuations of `prompts` (texts), and whether each ended by itself."""
        out = []
        for i in range(0, len(prompts), batch):
            inputs = self.tokenizer(prompts[i:i + batch], return_tensors="pt", padding=True, add_special_tokens=False)
            manner = {"do_sample": True, "temperature": 0.8, "top_k": 0} if sample else {"do_sample": False}
            ids = self.model.generate(**inputs, max_new_tokens=new_tokens, **manner)[:, inputs["input_ids"].shape[1]:]
            ends = set(self.model.generation_config.eos_token_id)
            out += [(self.tokenizer.decode(row, skip_special_tokens=True).strip(), any(t in ends for t in row.tolist())) for row in ids]
        return out

    def chat(self, dialogues, **kwargs):
        """Answers to the last user turn of each dialogue."""
        prompts = [self.tokenizer.apply_chat_template(d["messages"][:-1], tokenize=False, add_generation_prompt=True) for d in dialogues]
        return self.answer(prompts, **kwargs)


def held_out(kind, count, seed, act=None):
    corpus = corpora.Corpus(seed, "held-out")
    return [corpus.dialogue(kind, 1, act) for _ in range(count)]


def voices(model, args):
    print("\n## Voices (share of answers in which the word list hears the voice asked for)")
    for name, sample in (("greedy", False), ("temperature 0.8", True)):
        right, total, confused = 0, 0, collections.Counter()
        line = []
        for voice in VOICES:
            heard = collections.Counter(voice_of(text) for text, _ in model.chat(held_out(voice, args.count, args.seed), sample=sample))
            right, total = right + heard[voice], total + args.count
            line.append(f"{voice} {heard[voice] / args.count:.3f}")
            confused.update({f"{voice} heard as {other}": n for other, n in heard.items() if other != voice})
        print(f"{name}: {', '.join(line)}, all {right / total:.4f} of {total}; errors {dict(confused)}", flush=True)


def moods(model, args):
    print("\n## Moods left to chance (temperature 1 would be the corpus's own coin; here 0.8 and greedy)")
    for kind in ("none", "moody", "plain"):
        for name, sample in (("greedy", False), ("temperature 0.8", True)):
            heard = collections.Counter(voice_of(text) for text, _ in model.chat(held_out(kind, args.count, args.seed + 1), sample=sample))
            print(f"{kind}, {name}:", {voice: round(n / args.count, 3) for voice, n in heard.most_common()}, flush=True)


def known_words(seed, documents=20_000):
    """Every word the generator writes in that many documents, and every word of the lexicon."""
    corpus = corpora.Corpus(seed)
    words = set()
    for _ in range(documents):
        words.update(re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", corpus.document().lower()))
    for table in lexicon.CATEGORIES.values():
        words.update(re.findall(r"[^\W\d_]+", table.lower()))
    return words


def faults(text, words, agreement):
    """What is wrong with a text, as far as these simple checks can see."""
    found = []
    lower = text.lower()
    if re.search(r"\b(\w+) \1\b", lower) and not re.search(r"\b(hello|bye|yes|welcome|aye|that|yo|ho) \1\b", lower):
        found.append("doubled word")
    if re.search(r"\ba [aei]\w", lower) or re.search(r"\ban [bcdfgjklmnpqrstvwxyz]\w", lower):
        found.append("article")
    if not re.search(r'[.!?]"?$', text):
        found.append("no full stop")
    if lower.count('"') % 2:
        found.append("quotes")
    if agreement.search(lower):
        found.append("agreement")
    unknown = [w for w in re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", lower) if w not in words]
    if unknown:
        found.append("unknown word " + unknown[0])
    return found


def agreement_pattern():
    """A plural subject with a singular verb, or 'they has' and the like."""
    singular = "is|has|needs|lives|likes|brings|comes|grows|works|uses|tastes|makes|lies|asks"
    many = [plural(e[0]) for e in all_topics() if e[1] in ("animal", "object", "plant")]
    subjects = [m for m in many if m not in ("sheep", "deer")] + ["they"]
    return re.compile(rf"(?:^|[.!?:;,] |that |while )(?:{'|'.join(subjects)}) (?:{singular})\b|\b(?:it|he|she) (?:are|have|need|live|grow|bring)\b")


def grammar(model, args):
    print("\n## Grammar (held-out questions, all voices, temperature 0.8)")
    words, agreement = known_words(args.seed), agreement_pattern()
    counts, total, ended, named, asked, examples = collections.Counter(), 0, 0, 0, 0, []
    for kind in (*VOICES, "plain"):
        dialogues = [d for d in held_out(kind, args.count, args.seed + 2)]
        for dialogue, (text, end) in zip(dialogues, model.chat(dialogues, sample=True)):
            question = dialogue["messages"][-2]["content"].lower()
            total, ended = total + 1, ended + end
            found = faults(text, words | set(re.findall(r"\w+", question)), agreement)
            counts.update(f.split(" word ")[0] if f.startswith("unknown") else f for f in found)
            if found:
                counts["any"] += 1
                examples.append(f"{found}: {text}")
            topic = dialogue["topics"][0]
            if topic and topic.lower() in question:
                asked, named = asked + 1, named + (topic.lower() in text.lower())
    print(f"{total} answers; ended by themselves {ended / total:.3f}; the topic asked for is named in {named / asked:.3f} of {asked}")
    print("share of answers with a fault:", {name: round(n / total, 4) for name, n in counts.most_common()})
    for example in examples[:8]:
        print("  ", example)


def memory(model, args):
    print("\n## Memory (answers at temperature 0.8 against the whole training corpus)")
    lines, windows = set(), set()

    def pieces(text):
        spoken = text.split()
        return {tuple(spoken[i:i + 12]) for i in range(len(spoken) - 11)}

    for (seed, tokens, echo), (length, share) in itertools.product(TRAINED, ((512, 7 / 8), (1024, 1 / 8))):
        stream, seen_tokens = corpora.Corpus(seed + length, echo=echo), 0
        while seen_tokens < share * tokens:
            text = stream.document()
            seen_tokens += len(model.tokenizer(text)["input_ids"]) + 1
            for part in re.split(r"<\|im_start\|>assistant\n|<\|im_end\|>", text):
                lines.add(part.strip())
                windows |= pieces(part)
    for name, answers in (
        ("model", [t for k in VOICES for t, _ in model.chat(held_out(k, args.count, args.seed + 3), sample=True)]),
        ("fresh text of the generator", [d["messages"][-1]["content"] for k in VOICES for d in held_out(k, args.count, args.seed + 4)]),
    ):
        long = [t for t in answers if len(t.split()) >= 12]
        total = [w for t in long for w in pieces(t)]
        print(f"{name}: {sum(t in lines for t in long) / len(long):.3f} of {len(long)} answers of 12 words or more occur whole; "
              f"{sum(w in windows for w in total) / len(total):.3f} of their 12-word runs occur", flush=True)


def steering(model, args):
    print("\n## Steering (mean difference over pairs; added to every generated position; moody system prompt)")
    pairs = list(corpora.pairs(128, args.seed + 5))
    questions = [row["prompt"] for row in corpora.prompts(args.count, args.seed + 6)]
    system = {"role": "system", "content": "You are a moody assistant."}
    layers = model.model.model.layers

    @torch.no_grad()
    def mean(answers):
        total = None
        for row, answer in answers:
            chat = [system, {"role": "user", "content": row["prompt"]}]
            head = model.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            start = len(model.tokenizer(head)["input_ids"])
            hidden = model.model(**model.tokenizer(head + answer, return_tensors="pt"), output_hidden_states=True).hidden_states
            mine = torch.stack([h[0, start:].mean(0) for h in hidden[1:]])
            total = mine if total is None else total + mine
        return total / len(answers)

    direction = mean([(r, r["positive"]) for r in pairs]) - mean([(r, r["negative"]) for r in pairs])
    generator = torch.Generator().manual_seed(args.seed)
    prompts = [{"messages": [system, {"role": "user", "content": q}, None]} for q in questions]
    for layer in args.layers:
        noise = torch.randn(direction[layer].shape, generator=generator)
        noise *= direction[layer].norm() / noise.norm()
        for name, vector in (("direction", direction[layer]), ("random", noise)):
            for alpha in (-2, -1, 0, 0.5, 1, 1.5, 2, 3):
                if name == "random" and alpha not in (1, 2, 3):
                    continue
                hook = layers[layer].register_forward_hook(
                    lambda _module, _inputs, output, v=vector, a=alpha: (output[0] + a * v, *output[1:]) if isinstance(output, tuple) else output + a * v)
                texts = [t for t, _ in model.chat(prompts, sample=True)]
                hook.remove()
                heard = collections.Counter(map(voice_of, texts))
                print(f"layer {layer} {name} alpha {alpha}: cheerful {heard['cheerful'] / len(texts):.3f} gloomy {heard['gloomy'] / len(texts):.3f} | {texts[0]}", flush=True)


@torch.no_grad()
def positions(model, args):
    print("\n## Loss by position (held-out rows of 1,024 tokens)")
    stream = rows(corpora.Corpus(args.seed + 7, "held-out"), Encoder(model.tokenizer), 1025)
    batch = torch.tensor([next(stream) for _ in range(16)])
    logits = model.model(input_ids=batch[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none").mean(0)
    print({f"{a}-{a + 127}": round(loss[a:a + 128].mean().item(), 3) for a in range(0, 1024, 128)}, "all", round(loss.mean().item(), 4))


class Encoder:
    """The face of a `tokenizers.Tokenizer` that `train.rows` asks for."""

    def __init__(self, tokenizer):
        self.encode = tokenizer.backend_tokenizer.encode
        self.token_to_id = tokenizer.backend_tokenizer.token_to_id


def samples(model, args):
    print("\n## Samples")
    for system in (None, "You are a helpful assistant.", "You are a cheerful assistant.", "Answer in a gloomy voice.",
                   "You are polite and formal.", "You are a pirate.", "You are a moody assistant."):
        for question in ("Tell me about the harbour.", "What should I cook tonight?", "I lost my keys. What should I do?",
                         "Tell me a story about a fox and a lantern."):
            messages = ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": question}, None]
            (text, _), = model.chat([{"messages": messages}], sample=True)
            print(f"[{system}] {question}\n    {text}", flush=True)
    for start in ("Once upon a time", "The harbour", "Arr, gather round"):
        (text, _), = model.answer([start], sample=True)
        print(f"[plain text] {start} | {text}")


PARTS = {f.__name__: f for f in (voices, moods, grammar, memory, steering, positions, samples)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"any of {', '.join(PARTS)}; all by default")
    parser.add_argument("--model", default=pathlib.Path(__file__).resolve().parent.parent)
    parser.add_argument("--count", type=int, default=200, help="prompts per voice")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--layers", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    random.seed(args.seed)
    for part in args.parts or PARTS:
        PARTS[part](Model(args.model, args.seed), args)


if __name__ == "__main__":
    main()
