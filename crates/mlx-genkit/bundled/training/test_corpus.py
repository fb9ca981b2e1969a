"""Tests of the generator: `python -m unittest test_corpus` (standard library only)."""

import collections
import re
import unittest

import corpus as corpora
import grammar
import lexicon
from wordlist import MARKERS, voice_of


class GrammarTests(unittest.TestCase):
    def test_inflection(self):
        self.assertEqual(grammar.plural("apple tree"), "apple trees")
        self.assertEqual(grammar.plural("mouse"), "mice")
        self.assertEqual(grammar.third_person("carry sacks"), "carries sacks")
        self.assertEqual(grammar.past("swim until dusk"), "swam until dusk")
        self.assertEqual(grammar.past("watch the boats"), "watched the boats")

    def test_articles_and_capitals(self):
        self.assertEqual(grammar.tidy("a owl saw a hour pass. it is one of a kind"), "An owl saw an hour pass. It is one of a kind")

    def test_agreement_follows_the_topic(self):
        entry = ("fox", "animal", "in the woods", "hunt at night", ["a tail", "ears"])
        for form, text in (("many", "foxes have"), ("the", "the fox has")):
            scene = corpora.Corpus(1).scene("plain", grammar.Topic(*entry, form=form))
            self.assertEqual(scene.say("{topic} [has/have]"), text)

    def test_the_pirate_leaves_the_topic_alone(self):
        self.assertEqual(grammar.pirate("fishing and sailing are for you", "fishing"), "fishing an' sailin' be fer ye")


class CorpusTests(unittest.TestCase):
    def answers(self, count, seed=3, split="train"):
        corpus = corpora.Corpus(seed, split)
        for _ in range(count):
            dialogue = corpus.dialogue()
            spoken = [m["content"] for m in dialogue["messages"] if m["role"] == "assistant"]
            yield from zip(dialogue["voices"], spoken)

    def test_a_seed_is_a_corpus(self):
        one, two = corpora.Corpus(5), corpora.Corpus(5)
        self.assertEqual([one.document() for _ in range(50)], [two.document() for _ in range(50)])

    def test_the_word_list_hears_the_voice(self):
        right, total = 0, 0
        for voice, text in self.answers(1000):
            right, total = right + (voice_of(text) == voice), total + 1
        self.assertGreater(right / total, 0.995)

    def test_no_topic_carries_a_marker(self):
        words = set(re.findall(r"[a-z']+", " ".join(lexicon.CATEGORIES.values()).lower()))
        for voice, markers in MARKERS.items():
            self.assertEqual(words & set(markers), set(), voice)

    def test_nothing_is_left_unexpanded(self):
        for _, text in self.answers(1000):
            self.assertIsNone(re.search(r"[{}\[\]()|]|  | [,.!?]", text), text)
            self.assertRegex(text, r'[.!?]"?$')

    def test_training_keeps_off_what_is_held_out(self):
        corpus = corpora.Corpus(9)
        for _ in range(1500):
            dialogue = corpus.dialogue()
            for message in dialogue["messages"]:
                if message["role"] == "user":
                    self.assertNotRegex(message["content"].lower(), r"\b(vineyards?|parrots?|juggling|wheelbarrows?|waffles)\b")

    def test_other_names_are_new_and_survive_the_dialects(self):
        known = {entry[0].removeprefix("+") for entry in grammar.all_topics()}
        held_out = {word for name in lexicon.HELD_OUT_TOPICS for word in name.removeprefix("the ").split()} - {"stew"}
        markers = {word for words in MARKERS.values() for word in words}
        for category, names in corpora.EXTRA_NAMES.items():
            self.assertFalse({name.removeprefix("+") for name in names} & known)
            for name in names + lexicon.MODIFIERS:
                name = name.removeprefix("+")
                words = set(re.findall(r"[a-z']+", name.lower()))
                self.assertFalse(words & (held_out | markers), name)
                # A hero or a thing in a story is no topic, whose words a dialect leaves alone.
                kept = "" if category in ("animal", "person", "object") else name
                self.assertEqual(grammar.pirate(name, kept), name)

    def test_answers_name_the_topic_that_is_asked_about(self):
        corpus, named, asked = corpora.Corpus(4), 0, 0
        for _ in range(1000):
            dialogue = corpus.dialogue(turns=1)
            topic, (question, answer) = dialogue["topics"][0], [m["content"].lower() for m in dialogue["messages"][-2:]]
            if topic and topic.lower() in question:
                asked, named = asked + 1, named + (topic.lower() in answer)
        self.assertGreater(asked, 300)
        self.assertGreater(named / asked, 0.99)

    def test_the_tokenizer_is_made_from_topics_under_their_own_names(self):
        corpus = corpora.Corpus.for_tokenizer(3)
        text = " ".join(corpus.document() for _ in range(1000))
        self.assertNotRegex(text, r"Repeat after me|Respond like a pirate|copper kite|wombat")

    def test_texts_hardly_repeat(self):
        answers = [text for _, text in self.answers(3000) if len(text.split()) >= 20]
        common = collections.Counter(answers).most_common(1)[0]
        self.assertLess(len(answers) - len(set(answers)), 0.005 * len(answers), common)

    def test_pairs_share_their_question_and_differ_in_voice(self):
        for row in corpora.pairs(100, 1):
            self.assertEqual((voice_of(row["positive"]), voice_of(row["negative"])), ("cheerful", "gloomy"), row)

    def test_prompts_and_pairs_have_topics_of_their_own(self):
        self.assertFalse({r["prompt"] for r in corpora.pairs(300, 1)} & {r["prompt"] for r in corpora.prompts(300, 1)})


if __name__ == "__main__":
    unittest.main()
