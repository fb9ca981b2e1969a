"""Measures the bundled model on what it was not trained on. Prints the tables of the README.

    python evaluate.py                      # everything, on the committed model
    python evaluate.py voices samples       # some of it
    python evaluate.py --model build/bundled/run/model --count 100

voices      how often the word list hears the voice that was asked for, greedy and at temperature 0.8
moods       what is heard where the corpus leaves the mood to chance
grammar     articles, agreement, doubled and unknown words, the topic named, the answer ended
memory      how much of an answer the training corpus holds word for word
steering    whether a cheerful-minus-gloomy direction moves the moods
positions   the loss late in the context against the loss early in it
samples     one answer per voice, story and plain prose

The model answers through `mlxgk` (`--program`), in fp32; nothing but the standard library is needed.
"""

import argparse
import array
import collections
import json
import math
import pathlib
import random
import re
import struct
import subprocess
import tempfile

import corpus as corpora
import lexicon
from grammar import all_topics, plural
from wordlist import voice_of

# What the committed weights were trained on: the seed, and how many documents of rows of each length.
SEED, TRAINED = 20240607, {512: 62818, 1024: 8117}
VOICES = ("cheerful", "gloomy", "formal", "pirate")


class Model:
    """A folder, answering in batches."""

    def __init__(self, args):
        self.program, self.folder, self.seed = args.program, args.model, args.seed
        self.scratch = pathlib.Path(tempfile.mkdtemp(prefix="evaluate-"))

    def run(self, *arguments):
        """What `mlxgk` prints, as JSON."""
        command = [self.program, *arguments, "--model", self.folder, "--dtype", "float32", "--format", "json", "--quiet"]
        return json.loads(subprocess.run([str(a) for a in command], stdout=subprocess.PIPE, check=True).stdout)

    def answer(self, prompts, sample=False, batch=64, new_tokens=200, steer=()):
        """Answers to `prompts` (rows of a file of prompts), and whether each ended by itself."""
        out, path = [], self.scratch / "prompts.jsonl"
        for i in range(0, len(prompts), batch):
            path.write_text("".join(json.dumps(row) + "\n" for row in prompts[i:i + batch]), encoding="utf-8")
            self.seed += 1
            manner = ["--temp", "0.8", "--top-k", "0", "--seed", self.seed] if sample else ["--temp", "0"]
            found = self.run("generate", "--prompts-file", path, "--no-auto-chat", "-n", new_tokens, *manner, *steer)
            out += [(row["text"].strip(), row["finish_reason"] != "length") for row in found["sequences"]]
        return out

    def chat(self, dialogues, **kwargs):
        """Answers to the last user turn of each dialogue."""
        return self.answer([{"messages": d["messages"][:-1]} for d in dialogues], **kwargs)


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
    corpus = corpora.Corpus(seed, copying=False)
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
    if not any(TRAINED.values()):
        print("not measured: TRAINED does not say what the weights were trained on")
        return
    lines, windows = set(), set()

    def pieces(text):
        spoken = text.split()
        return {tuple(spoken[i:i + 12]) for i in range(len(spoken) - 11)}

    for length, documents in TRAINED.items():
        stream = corpora.Corpus(SEED + length)
        for _ in range(documents):
            for part in re.split(r"<\|im_start\|>assistant\n|<\|im_end\|>", stream.document()):
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


def random_like(path, out, layer, seed):
    """Writes a steering file with a vector of chance in place of this layer's, of the same length."""
    data = path.read_bytes()
    size, = struct.unpack("<Q", data[:8])
    header, rng = json.loads(data[8:8 + size]), random.Random(seed)
    begin, end = next(it["data_offsets"] for name, it in header.items() if name.endswith(f".{layer}"))
    vector = array.array("f", data[8 + size + begin:8 + size + end])
    noise = [rng.gauss(0, 1) for _ in vector]
    scale = math.hypot(*vector) / math.hypot(*noise)
    changed = array.array("f", (scale * x for x in noise)).tobytes()
    out.write_bytes(data[:8 + size + begin] + changed + data[8 + size + end:])


def steering(model, args):
    print("\n## Steering (mean difference over pairs; added at every position; moody system prompt)")
    system = {"role": "system", "content": "You are a moody assistant."}
    pairs, direction, noise = (model.scratch / name for name in ("pairs.jsonl", "direction.safetensors", "noise.safetensors"))
    pairs.write_text("".join(json.dumps(row) + "\n" for row in corpora.pairs(128, args.seed + 5)), encoding="utf-8")
    model.run("steer", "extract", "--pairs", pairs, "--system", system["content"], "--held-out", 0, "--out", direction)
    questions = [row["prompt"] for row in corpora.prompts(args.count, args.seed + 6)]
    prompts = [{"messages": [system, {"role": "user", "content": q}, None]} for q in questions]
    for layer in args.layers:
        random_like(direction, noise, layer, args.seed)
        for name, file, alphas in (("direction", direction, (-2, -1, 0, 0.5, 1, 1.5, 2, 3)), ("random", noise, (1, 2, 3))):
            for alpha in alphas:
                texts = [t for t, _ in model.chat(prompts, sample=True, steer=["--steer", f"{file}:{alpha}", "--steer-layers", layer])]
                heard = collections.Counter(map(voice_of, texts))
                print(f"layer {layer} {name} alpha {alpha}: cheerful {heard['cheerful'] / len(texts):.3f} gloomy {heard['gloomy'] / len(texts):.3f} | {texts[0]}", flush=True)


def positions(model, args):
    print("\n## Loss by position (held-out documents one after the other)")
    corpus, sums, counts = corpora.Corpus(args.seed + 7, "held-out"), collections.Counter(), collections.Counter()
    for _ in range(16):
        text = ""
        while len(text) < 3400:
            text += corpus.document() + "<|endoftext|>"
        for position, logprob in enumerate(model.run("score", "--text", text[:3400])["logprobs"]):
            sums[position // 128] -= logprob
            counts[position // 128] += 1
    print({f"{128 * i}-{128 * i + 127}": round(sums[i] / counts[i], 3) for i in sorted(sums) if counts[i] == 128 * 16},
          "all", round(sum(sums.values()) / sum(counts.values()), 4))


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
        (text, _), = model.answer([{"prompt": start}], sample=True)
        print(f"[plain text] {start} | {text}")


PARTS = {f.__name__: f for f in (voices, moods, grammar, memory, steering, positions, samples)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"any of {', '.join(PARTS)}; all by default")
    parser.add_argument("--model", default=pathlib.Path(__file__).resolve().parent.parent)
    parser.add_argument("--count", type=int, default=200, help="prompts per voice")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--layers", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--program", default="mlxgk", help="the mlxgk program")
    args = parser.parse_args()
    for part in args.parts or PARTS:
        PARTS[part](Model(args), args)


if __name__ == "__main__":
    main()
