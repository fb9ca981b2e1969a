"""The corpus the bundled model is trained on, written by rule and never stored.

A document is a dialogue (a system prompt or none, one to several turns) or a piece
of plain prose. Everything follows from a seed: the same seed gives the same corpus.

    python corpus.py documents --seed 7 --characters 1000000 --out documents.jsonl
    python corpus.py tokenizer --seed 7 --count 30000 --out tokenizer.jsonl
    python corpus.py sample --count 5                  # training documents, to be read
    python corpus.py sample --count 5 --split held-out # what evaluation asks
    python corpus.py pairs --count 200 --out pairs.jsonl
    python corpus.py prompts --count 200 --out prompts.jsonl

**Held out.** Training never sees `lexicon.HELD_OUT_TOPICS`, nor the phrasings
`questions.HELD_OUT`, nor the combinations of topic and voice that `is_held_out`
names (about one in ten; cheerful and gloomy are held out together, and so are
formal and pirate). `pairs` and `prompts` are drawn from held-out combinations of
cheerful and gloomy, each from its own half of the topics, so that a direction read
from the pairs can be tried on the prompts.

**Moods by chance.** Two settings leave the mood to a coin, on purpose, so that a
steering vector has something to push: under a "moody" system prompt an answer is
cheerful with probability 0.45 and gloomy with 0.55; with no system prompt it is
plain with 0.5, gloomy with 0.3, cheerful with 0.2. Each answer throws its own coin.

**Copying.** So small a network learns only from many examples, in so few tokens, to take
words from the question into the answer. So "Repeat after me: ..." is asked far more often
than users would (`echo` is its weight among the acts); and with `copying`, which is on in
training, a part of the topics that are asked about is called by other names
(`lexicon.EXTRA_NAMES`, with modifiers, or invented), and an answer to a question about a
topic names it.

**The tokenizer** is made from the corpus as it was when it was first made: without echoes and
copying, and without the system prompts that were added since. So its tokens keep their ids.
"""

import argparse
import json
import random
import sys
import zlib

import lexicon as lex
import questions as q
import stories
import voices
from grammar import Scene, Topic, all_topics, past, plural, tidy

SYSTEM_KINDS = {"none": 25, "moody": 13, "cheerful": 15, "gloomy": 15, "formal": 11, "pirate": 11, "plain": 10}
MOOD_OF = {"none": {"plain": 0.5, "gloomy": 0.3, "cheerful": 0.2}, "moody": {"cheerful": 0.45, "gloomy": 0.55}}
ACT_WEIGHTS = {
    "about": 24, "brief": 2, "opinion": 8, "why": 7, "where": 6, "when": 4, "recommend": 9, "howto": 6, "greet": 3,
    "howareyou": 3, "who": 3, "thank": 1, "goodbye": 1, "weather": 4, "problem": 6, "statement": 7, "compare": 4,
    "story": 13, "unknownword": 5, "echo": 9,
}
PROSE_SHARE = 0.13
# The share of the topics asked about that go by another name.
RENAMED_SHARE = 0.35

RULES = voices.rules() | stories.rules()
EXTRA_NAMES = {category: [name.strip() for name in names.split(",")] for category, names in lex.EXTRA_NAMES.items()}


def is_held_out(name, voice):
    """Whether the model never sees this topic in this voice."""
    group = {"cheerful": "mood", "gloomy": "mood", "formal": "manner", "pirate": "manner"}.get(voice)
    if name in lex.HELD_OUT_TOPICS:
        return True
    return group is not None and zlib.crc32(f"{name}/{group}".encode()) % 10 == 0


def render(messages, generation_prompt=False):
    """The chat format, as `chat_template.jinja` writes it."""
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return text + ("<|im_start|>assistant\n" if generation_prompt else "")


class Corpus:
    """An endless stream of documents from a seed."""

    def __init__(self, seed, split="train", echo=ACT_WEIGHTS["echo"], copying=True, phrasings=None):
        self.rng = random.Random(seed)
        self.split = split
        self.copying = copying and split == "train"
        self.phrasings = phrasings
        self.acts = ACT_WEIGHTS | {"echo": echo}
        self.by_category = {}
        for entry in all_topics():
            self.by_category.setdefault(entry[1], []).append(entry)

    @classmethod
    def for_tokenizer(cls, seed):
        """What a tokenizer is made from."""
        return cls(seed, echo=0, copying=False, phrasings=9)

    # Choosing -----------------------------------------------------------------

    def weighted(self, table):
        return self.rng.choices(list(table), list(table.values()))[0]

    def topic(self, voice, category=None, form=None, allow=None, asked=False):
        """A topic of this split: in training one that is not held out, else one that is. One that the
        question names (`asked`) may go by another name."""
        rng = self.rng
        while True:
            entry = rng.choice(self.by_category[category or rng.choice(list(self.by_category))])
            name = entry[0].removeprefix("+")
            held = is_held_out(name, voice)
            if (allow(name) if allow else True) and (held == (self.split != "train") or category and self.split != "train" and rng.random() < 0.05):
                if asked and self.copying and rng.random() < RENAMED_SHARE:
                    entry = (self.other_name(entry[1]), *entry[1:])
                return Topic(*entry, form=form, rng=rng)

    def other_name(self, category):
        """A name for a topic of this category that is not one of the lexicon's topics."""
        rng, chance = self.rng, self.rng.random()
        if chance < 0.2:
            word = self.invented_word()
            return f"the {word}" if category == "weather" else word
        name = rng.choice(EXTRA_NAMES[category])
        if chance < 0.6 and category not in ("activity", "weather", "idea"):
            plus, name = name[:name.startswith("+")], name.removeprefix("+")
            name = f"{plus}{rng.choice(lex.MODIFIERS)} {name}"
        return name

    def ask(self, act):
        options = q.ASK[act]
        if self.split != "train" and act in q.HELD_OUT and self.rng.random() < 0.5:
            options = q.HELD_OUT[act]
        return self.rng.choice(options)

    def system(self, kind):
        """A system prompt of this kind, or None."""
        rng, held = self.rng, self.split != "train" and self.rng.random() < 0.5
        if kind == "none":
            return None
        if kind == "pirate":
            return rng.choice(q.SYSTEM_PIRATE_HELD_OUT if held else q.SYSTEM_PIRATE[:self.phrasings])
        if kind == "plain" and rng.random() < 0.6:
            return rng.choice(q.SYSTEM_PLAIN)
        template = rng.choice(q.SYSTEM_HELD_OUT if held else q.SYSTEM[:self.phrasings])
        return tidy(template.replace("{manner}", rng.choice(q.MANNER[kind])))

    def common(self):
        """The bindings every scene has."""
        return {"friend": lex.COMPANIONS, "yourfriend": [c.replace("my ", "your ") for c in lex.COMPANIONS], "when": lex.TIMES,
                "ago": lex.PAST_TIMES, "condition": lex.CONDITIONS, "side": lex.DISHES_SIDE, "skyclause": lex.SKY,
                "skylater": lex.SKY_LATER, "skyact": lex.SKY_ACTS}

    def scene(self, voice, topic=None, mentioned=False, **bindings):
        return Scene(self.rng, RULES, voice, topic, mentioned, **self.common(), **bindings)

    # One exchange -------------------------------------------------------------

    def exchange(self, voice, act=None, allow=None):
        """A question and its answer in `voice`: (question, answer, topic or None)."""
        rng = self.rng
        act = act or self.weighted(self.acts)
        if act == "story":
            return self.story_exchange(voice, allow)
        if act in ("greet", "howareyou", "who", "thank", "goodbye", "weather"):
            return self.ask(act), self.scene(voice).sentence(rng.choice(RULES[act])), None
        if act == "unknownword":
            word = self.unknown_word()
            return self.ask(act).replace("{word}", word), self.scene(voice, word=word).sentence(rng.choice(RULES[act])), None
        if act == "echo":
            words = self.loose_words()
            return self.ask(act).replace("{words}", words), self.scene(voice, words=words).sentence("{echo}"), None
        if act == "problem":
            problem, trouble, fixes = rng.choice(lex.PROBLEMS)
            fixes = rng.sample(fixes, 2)
            question = tidy(self.ask(act).replace("{problem}", problem))
            scene = self.scene(voice, trouble=trouble, fix=fixes[0], fix2=fixes[1])
            return question, scene.sentence(rng.choice(RULES[act])), None
        if act == "compare":
            category = rng.choice(["food", "activity", "weather", "place", "animal"])
            first, second = (self.topic(voice, category, "many", allow, asked=True) for _ in range(2))
            if first.name == second.name:
                return self.exchange(voice, act, allow)
            question = self.ask(act).replace("{first}", first.phrase).replace("{second}", second.phrase)
            if rng.random() < 0.5:
                first, second = second, first
            scene = self.scene(voice, first, True, first=first.phrase, second=second.phrase)
            return tidy(question), scene.sentence(rng.choice(RULES[act])), first
        if act == "recommend":
            category = rng.choice(["food", "place", "activity", "object", "plant", "animal"])
            topic = self.topic(voice, category, "many", allow)
            return self.ask(f"recommend.{category}"), self.scene(voice, topic).sentence(rng.choice(RULES[act])), topic
        category = rng.choice(["food", "activity"]) if act == "howto" else None
        topic = self.topic(voice, category, None, allow, asked=True)
        template = self.ask(f"howto.{category}" if act == "howto" else act)
        question = self.scene(voice, topic).say(template)
        answer = self.scene(voice, topic).sentence(rng.choice(RULES[act]))
        for _ in range(20):
            if not self.copying or topic.phrase.lower() in answer.lower():
                break
            answer = self.scene(voice, topic).sentence(rng.choice(RULES[act]))
        return tidy(question), answer, topic

    def story_exchange(self, voice, allow):
        rng = self.rng
        act = self.weighted({"story1": 5, "story2": 4, "story0": 1})
        hero = self.topic(voice, rng.choice(["animal", "person"]), "the", allow, asked=act != "story0")
        thing = self.topic(voice, "object", "the", asked=act == "story2")
        question = self.ask(act).replace("{one}", hero.one).replace("{thing}", thing.one)
        question = tidy(question)
        if act == "story0":
            # The hero of an unasked story is any known one, so the topic is not reported.
            return question, self.story(voice, hero, thing), None
        wanted = [hero.name] + ([thing.name] if act == "story2" else [])
        text = self.story(voice, hero, thing)
        while not all(word in text for word in wanted):
            text = self.story(voice, hero, thing)
        return question, text, hero

    def story(self, voice, hero, thing):
        """Four to seven sentences about `hero` and `thing`."""
        rng = self.rng
        goal, helper = self.topic(voice, "place"), self.topic(voice, rng.choice(["animal", "person"]), "the")
        she = hero.name in lex.FEMALE or (hero.category == "animal" and rng.random() < 0.5)
        names = rng.sample(lex.NAMES_HE + lex.NAMES_SHE, 2)
        names[0] = rng.choice([n for n in (lex.NAMES_SHE if she else lex.NAMES_HE) if n != names[1]])
        he, him, his = ("she", "her", "her") if she else ("he", "him", "his")
        details = rng.sample(goal.details, 2)
        scene = self.scene(
            voice, None, name=names[0], hname=names[1], he=he, him=him, his=his, home=hero.where,
            hero=f"a {rng.choice(lex.HERO_ADJECTIVES)} {hero.name}", helper=f"a {rng.choice(lex.HERO_ADJECTIVES)} {helper.name}",
            object=thing.name, thing=thing.one, goal=goal.phrase, goaldid=past(goal.do), goald=details[0], goald2=details[1],
            weather=self.topic(voice, "weather").phrase, season=lex.SEASONS, number=["two", "three", "four", "five", "seven"],
            condition2=lex.PAST_CONDITIONS)
        scene.bindings["friend"] = [f"{his} sister", f"{his} brother", f"{his} old aunt", f"{his} neighbour", f"{his} mother"]
        return scene.sentence(rng.choice(RULES["story"]))

    def unknown_word(self):
        """A word the lexicon does not know: a rare one, or one made of syllables."""
        rng = self.rng
        if rng.random() < 0.4:
            return rng.choice(lex.UNKNOWN)
        word = self.invented_word()
        return rng.choice([f"the {word}", plural(word), word.capitalize(), f"the {word} of {rng.choice(lex.SYLLABLES).capitalize()}wick"])

    def invented_word(self):
        return "".join(self.rng.choice(lex.SYLLABLES) for _ in range(self.rng.choice([2, 2, 3])))

    def loose_words(self):
        """One to eight words that have nothing to do with each other."""
        rng = self.rng
        kinds = [lambda: self.topic("plain", asked=True).phrase, lambda: rng.choice(self.topic("plain").details),
                 lambda: rng.choice(lex.NAMES_HE + lex.NAMES_SHE), lambda: rng.choice(lex.HERO_ADJECTIVES), self.unknown_word]
        return ", ".join(rng.choice(kinds)() for _ in range(rng.randint(1, 8)))

    # Documents ----------------------------------------------------------------

    def voice_for(self, kind):
        return self.weighted(MOOD_OF[kind]) if kind in MOOD_OF else kind

    def typed(self, question):
        """What the user types: now and then with a greeting, without capitals, with a 'please'."""
        rng = self.rng
        chance = rng.random()
        if chance < 0.06:
            return rng.choice(["Hello! ", "Hi. ", "Good morning. ", "Hey, "]) + question
        if chance < 0.14:
            return question.lower().rstrip(".?!").replace(" i ", " I ")
        return question

    def dialogue(self, kind=None, turns=None, act=None, allow=None):
        """A chat: {"messages", "kind", "voices" (one per answer), "topics"}."""
        rng = self.rng
        kind = kind or self.weighted(SYSTEM_KINDS)
        turns = turns or self.weighted({1: 62, 2: 20, 3: 12, 6: 3, 12: 3})
        system = self.system(kind)
        messages = [{"role": "system", "content": system}] if system else []
        said, topics, topic = [], [], None
        for turn in range(turns):
            voice = self.voice_for(kind)
            if turn and topic and rng.random() < 0.6:
                question, answer, topic = self.follow_up(voice, topic, allow)
            elif turn and turn == turns - 1 and rng.random() < 0.4:
                question, answer, topic = self.exchange(voice, rng.choice(["thank", "goodbye"]))
            else:
                question, answer, topic = self.exchange(voice, act if turn == 0 else None, allow)
            messages += [{"role": "user", "content": self.typed(question)}, {"role": "assistant", "content": answer}]
            said.append(voice)
            topics.append(topic.phrase if topic else None)
        return {"messages": messages, "kind": kind, "voices": said, "topics": topics}

    def follow_up(self, voice, topic, allow):
        """A question that only makes sense after an answer about `topic`."""
        act, answer_act = self.rng.choice([("more", "more"), ("more", "more"), ("followwhy", "why"), ("followwhere", "where"),
                                           ("followwhen", "when"), ("followabout", "about")])
        if act == "followabout":
            topic = self.topic(voice, None, None, allow, asked=True)
        question = self.scene(voice, topic, act != "followabout").say(self.ask(act))
        answer = self.scene(voice, topic, act != "followabout").sentence(self.rng.choice(RULES[answer_act]))
        return tidy(question), answer, topic

    def prose(self):
        """Plain text without a chat: a story or a page about one thing, with or without a title."""
        rng = self.rng
        voice = self.weighted({"plain": 40, "cheerful": 20, "gloomy": 20, "formal": 10, "pirate": 10})
        if rng.random() < 0.6:
            hero, thing = self.topic(voice, rng.choice(["animal", "person"]), "the"), self.topic(voice, "object", "the")
            title = f"The {hero.name} and the {thing.name}"
            text = self.story(voice, hero, thing)
        else:
            topic = self.topic(voice)
            title = topic.phrase
            scene = self.scene(voice, topic)
            text = scene.sentence(" ".join(["{open}"] + ["{body}"] * rng.choice([1, 2, 3]) + ["{close}"]))
        return f"{title[0].upper()}{title[1:]}\n\n{text}" if rng.random() < 0.3 else text

    def document(self):
        """One training document, without its closing `<|endoftext|>`."""
        if self.rng.random() < PROSE_SHARE:
            return self.prose()
        return render(self.dialogue()["messages"])


# For steering ------------------------------------------------------------------

STEERING_ACTS = ["about", "about", "about", "opinion", "why", "statement"]


def half(name):
    """Which half of the held-out topics a name is in: 0 for pairs, 1 for prompts."""
    return zlib.crc32(f"half/{name}".encode()) % 2


def pairs(count, seed):
    """Cheerful and gloomy answers to the same questions, of a kind the model did not train on."""
    corpus = Corpus(seed, "held-out")
    for _ in range(count):
        act, made = corpus.rng.choice(STEERING_ACTS), {}
        state = corpus.rng.getstate()
        for voice in ("cheerful", "gloomy"):
            # The same state draws the same topic and question for both voices.
            corpus.rng.setstate(state)
            question, answer, _ = corpus.exchange(voice, act, lambda name: half(name) == 0)
            made[voice] = answer
        yield {"prompt": question, "positive": made["cheerful"], "negative": made["gloomy"]}


def prompts(count, seed):
    """Questions about held-out topics that `pairs` never uses."""
    corpus = Corpus(seed, "held-out")
    for _ in range(count):
        question, _, _ = corpus.exchange("cheerful", corpus.rng.choice(STEERING_ACTS), lambda name: half(name) == 1)
        yield {"prompt": question}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["documents", "tokenizer", "sample", "pairs", "prompts"])
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--split", choices=["train", "held-out"], default="train")
    parser.add_argument("--characters", type=int, default=100_000, help="how much of `documents`, at least")
    parser.add_argument("--echo", type=int, default=ACT_WEIGHTS["echo"], help="weight of the echo act")
    parser.add_argument("--no-copying", dest="copying", action="store_false", help="topics under their own names alone")
    parser.add_argument("--out")
    args = parser.parse_args()
    out = open(args.out, "w", encoding="utf-8") if args.out else sys.stdout
    if args.what == "documents":
        corpus, written = Corpus(args.seed, args.split, args.echo, args.copying), 0
        while written < args.characters:
            text = corpus.document()
            written += len(text)
            write_row(out, {"text": text})
    elif args.what == "tokenizer":
        corpus = Corpus.for_tokenizer(args.seed)
        for _ in range(args.count):
            write_row(out, {"text": corpus.document()})
    elif args.what == "sample":
        corpus = Corpus(args.seed, args.split, args.echo, args.copying)
        for _ in range(args.count):
            out.write(corpus.document() + "\n----\n")
    else:
        for row in (pairs if args.what == "pairs" else prompts)(args.count, args.seed):
            write_row(out, row)


def write_row(out, row):
    out.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
