"""A small template grammar: recursion, choice, agreement, inflection, dialects.

A template is a string. `Scene.say` expands it from left to right:

    (one|two)      one of the alternatives, which may nest; an empty one is allowed
    {name}         a binding of the scene, or else one of the rule's alternatives
    [is/are]       agreement with the number of the scene's topic

Rules are looked up in the scene's voice first and then in the shared table, so a
voice overrides only what it says differently. A rule may use itself (`core` joins
two `core`s); depth is bounded by the scene.
"""

import random
import re

import lexicon as lex


def plural(noun):
    """The plural of a noun or noun compound, whose head is its last word."""
    *front, head = noun.split(" ")
    if head in lex.IRREGULAR_PLURALS:
        head = lex.IRREGULAR_PLURALS[head]
    elif re.search(r"[^aeiou]y$", head):
        head = head[:-1] + "ies"
    elif re.search(r"(s|x|ch|sh)$", head):
        head += "es"
    else:
        head += "s"
    return " ".join([*front, head])


def third_person(phrase):
    """'cast the line' becomes 'casts the line'."""
    verb, rest = (phrase + " ").split(" ", 1)
    if re.search(r"(s|x|ch|sh|o)$", verb):
        verb += "es"
    elif re.search(r"[^aeiou]y$", verb):
        verb = verb[:-1] + "ies"
    else:
        verb += "s"
    return f"{verb} {rest}".strip()


def past(phrase):
    """'cast the line' stays, 'watch the boats' becomes 'watched the boats'."""
    verb, rest = (phrase + " ").split(" ", 1)
    if verb in lex.IRREGULAR_PASTS:
        verb = lex.IRREGULAR_PASTS[verb]
    elif verb.endswith("e"):
        verb += "d"
    elif re.search(r"[^aeiou]y$", verb):
        verb = verb[:-1] + "ied"
    else:
        verb += "ed"
    return f"{verb} {rest}".strip()


DOUBLING = {"swim", "sit", "run", "cut", "let", "spin", "dig", "chop", "dip", "skip", "stir", "stop",
            "get", "put", "set", "hum", "plan", "begin", "knit", "forget"}


def gerund(phrase):
    """'take a nap' becomes 'taking a nap'."""
    verb, rest = (phrase + " ").split(" ", 1)
    if verb in DOUBLING:
        verb += verb[-1] + "ing"
    elif verb == "tie":
        verb = "tying"
    elif verb.endswith("e") and not verb.endswith("ee") and verb != "shoe":
        verb = verb[:-1] + "ing"
    else:
        verb += "ing"
    return f"{verb} {rest}".strip()


class Topic:
    """A thing talked about: its noun phrase, number, pronouns and facts."""

    def __init__(self, name, category, where, do, details, form=None, rng=random):
        self.category, self.name = category, name
        self.where, self.do, self.details = where, do, details
        self.is_plural, she = False, None
        if category == "place":
            self.phrase = f"the {name}"
        elif category in ("animal", "object", "plant", "person"):
            forms = ["many", "many", "the"] if category in ("animal", "person") else ["many"]
            form = form or rng.choice(forms)
            self.is_plural = form == "many"
            self.phrase = plural(name) if self.is_plural else f"the {name}"
            if category == "person" and not self.is_plural:
                she = name in lex.FEMALE
        else:
            self.is_plural = name.startswith("+") or name in lex.PLURAL_IDEAS
            self.phrase = name.removeprefix("+")
        self.one = f"a {name}" if category in ("animal", "object", "plant", "person") else self.phrase
        if self.is_plural:
            self.it, self.them, self.its = "they", "them", "their"
        elif she is None:
            self.it, self.them, self.its = "it", "it", "its"
        else:
            self.it, self.them, self.its = ("she", "her", "her") if she else ("he", "him", "his")


def all_topics():
    """Every line of the lexicon as (name without its plural mark, category, fields)."""
    for category, table in lex.CATEGORIES.items():
        for line in table.strip().splitlines():
            name, where, do, details = (part.strip() for part in line.split("|"))
            yield name, category, where, do, [d.strip() for d in details.split(",")]


CLAUSES = {"see", "place", "act", "past", "tip"}


class Scene:
    """What one answer is made from: a voice, a topic, and the words drawn so far."""

    MAX_DEPTH = 12

    def __init__(self, rng, rules, voice, topic=None, mentioned=False, **bindings):
        self.rng, self.rules, self.voice, self.topic = rng, rules, voice, topic
        self.mentioned = mentioned
        self.bindings = bindings
        self.details = list(topic.details) if topic else []
        rng.shuffle(self.details)
        self.last_detail = None
        self.joins, self.kinds, self.used, self.told = 0, set(), set(), set()

    def rule(self, name):
        """The alternatives for `name`: the voice's own, else the topic category's, else shared."""
        category = self.topic.category if self.topic else "idea"
        for key in (f"{self.voice}.{name}", f"{category}.{name}", name):
            if key in self.rules:
                return self.rules[key]
        raise KeyError(f"no rule for {name} in voice {self.voice}, category {category}")

    def say(self, template, depth=0):
        """Expand a template; `depth` bounds recursion."""
        if depth > self.MAX_DEPTH:
            raise RecursionError(template)
        out, i = [], 0
        while i < len(template):
            mark = template[i]
            if mark == "(":
                options, i = split_choice(template, i)
                out.append(self.say(self.rng.choice(options), depth + 1))
            elif mark == "{":
                end = template.index("}", i)
                out.append(self.fill(template[i + 1:end], depth + 1))
                i = end + 1
            elif mark == "[":
                end = template.index("]", i)
                one, many = template[i + 1:end].split("/")
                out.append(many if self.topic and self.topic.is_plural else one)
                i = end + 1
            else:
                out.append(mark)
                i += 1
        return "".join(out)

    def fill(self, name, depth):
        """The text for `{name}`."""
        topic, rng = self.topic, self.rng
        if name in self.bindings:
            value = self.bindings[name]
            return rng.choice(value) if isinstance(value, list) else value
        if topic is not None:
            if name == "topic":
                self.mentioned = True
                return topic.phrase
            if name in ("s", "o"):
                if self.mentioned and rng.random() < 0.75:
                    return topic.it if name == "s" else topic.them
                self.mentioned = True
                return topic.phrase
            if name in ("it", "them", "its", "one", "where"):
                return getattr(topic, name)
            if name == "do":
                return topic.do
            if name == "does":
                return topic.do if topic.is_plural else third_person(topic.do)
            if name == "did":
                return past(topic.do)
            if name == "doing":
                return gerund(topic.do)
            if name == "d":
                if not self.details:
                    self.details = [d for d in topic.details if d != self.last_detail]
                    rng.shuffle(self.details)
                self.last_detail = self.details.pop()
                return self.last_detail
        if name == "core" and self.joins < 1 and rng.random() < 0.18:
            # Clauses are joined at most once per answer, so that sentences stay short.
            self.joins += 1
            name = "joined"
        elif name in ("core", "fact"):
            kinds = ["see", "see", "place", "act"] + (["past"] if name == "core" else [])
            name = rng.choice([k for k in kinds if k not in self.kinds] or kinds)
            self.kinds.add(name)
        text = self.say(self.pick(name), depth)
        return dialect_of_core(text, self.voice) if name in CLAUSES else text

    def pick(self, name):
        """An alternative of a rule: one that repeats nothing said in this answer, if there is any."""
        options = self.rule(name)
        new = [o for o in options if o not in self.used]
        fresh = [o for o in new if not any(fact in o for fact in self.told)]
        template = self.rng.choice(fresh or new or options)
        self.used.add(template)
        self.told.update(fact for fact in ("{do", "{where}", "{friend}") if fact in template)
        if "{did}" in template:
            self.told.add("{do")
        return template

    def sentence(self, template):
        """Expand one template into finished sentences: articles, capitals, dialect."""
        text = self.say(template)
        if self.voice == "pirate":
            text = pirate(text, self.topic.phrase if self.topic else "")
        return tidy(text)


def split_choice(template, start):
    """The alternatives of the choice that opens at `start`, and where it ends."""
    depth, parts, piece = 0, [], start + 1
    for i in range(start, len(template)):
        c = template[i]
        if c == "(":
            depth += 1
        elif c == ")":
            depth -= 1
            if depth == 0:
                parts.append(template[piece:i])
                return parts, i + 1
        elif c == "|" and depth == 1:
            parts.append(template[piece:i])
            piece = i + 1
    raise ValueError(f"unclosed choice in {template!r}")


def tidy(text):
    """Spaces, 'a' before a vowel sound, and capitals after a full stop."""
    text = re.sub(r" +", " ", text).strip()
    text = re.sub(r" ([,.!?;])", r"\1", text)
    text = re.sub(r"\b([Aa])(?= (?:[aei]|o(?!ne\b)|u(?!ni|se|su)|hour|honest))", r"\1n", text)
    text = re.sub(r"\bi\b(?=[ ']|$)", "I", text)
    return re.sub(r"""(^["']?|[.!?]"? ["']?|\n["']?)([a-z])""", lambda m: m[1] + m[2].upper(), text)


FORMAL = [(r"\byou can\b", "one may"), (r"\byou need\b", "one requires"), (r"\byou will\b", "one will"),
          (r"\byour\b", "one's"), (r"\bpeople\b", "many persons"), (r"\boften\b", "frequently"),
          (r"\bvery\b", "exceedingly"), (r"\ba lot of\b", "a considerable number of"),
          (r"\bget\b", "obtain"), (r"\bbuy\b", "purchase"), (r"\blike to\b", "are accustomed to")]


def dialect_of_core(text, voice):
    """Formal speech avoids 'you' and short plain words; the other voices change nothing here."""
    if voice == "formal":
        for pattern, replacement in FORMAL:
            text = re.sub(pattern, replacement, text)
    return text


PIRATE = [(r"\byou are\b", "ye be"), (r"\bI am\b", "I be"), (r"\byou\b", "ye"), (r"\byour\b", "yer"),
          (r"\bmy\b", "me"), (r"\b(is|are)\b", "be"), (r"\band\b", "an'"), (r"\bof\b", "o'"),
          (r"\bfor\b", "fer"), (r"\bnever\b", "ne'er"), (r"\bover\b", "o'er"), (r"\bfriend(s?)\b", r"shipmate\1"),
          (r"\bold\b", "ol'"), (r"\bit be\b", "'tis"), (r"\bIt be\b", "'Tis")]
KEEP_ING = {"morning", "evening", "something", "nothing", "anything", "everything", "spring", "string",
            "king", "ring", "wing", "ceiling", "pudding"}


def pirate(text, topic):
    """The dialect: 'ye', 'be', 'an'' and dropped g's. The topic's own words are left alone."""
    for pattern, replacement in PIRATE:
        text = re.sub(pattern, replacement, text)
    kept = KEEP_ING | set(topic.split())

    def drop_g(match):
        word = match[0]
        return word if word.lower() in kept or len(word) < 6 else word[:-1] + "'"

    return re.sub(r"\b\w+ing\b", drop_g, text)
