"""Stories of four to seven sentences: a hero, a want, a road, a meeting, an end.

The plot is shared and in the past tense; each voice adds how it begins, what it
feels on the way, what is said, and how it ends.
"""

SHARED = {
    "when0": ["once upon a time", "long ago", "many years ago", "one {season}", "in the days before the railway", "not so long ago"],
    "begin": [
        "{when0} there was {hero} called {name} who lived {home}.", "{when0} {hero} called {name} lived {home}.",
        "{name} was {hero} who lived {home}.", "there was once {hero} whose name was {name}, and {he} lived {home}.",
        "{home} lived {hero} by the name of {name}.", "this is the story of {name}, {hero} who lived {home}.",
    ],
    "want": [
        "{he} wanted nothing more than {thing}.", "one day {he} lost {his} {object}.", "{he} had never seen {goal}.",
        "every night {he} dreamed of {goal}.", "one morning {he} found {thing} under a stone.",
        "{name} had {thing}, but {he} did not know what it was for.", "{he} had promised {thing} to {friend}.",
        "{name} was afraid of {weather}, and {he} told no one.",
    ],
    "trip": [
        "so {he} set out for {goal}.", "{he} walked for {number} days until {he} came to {goal}.",
        "when {condition2}, {name} packed {his} bag and went to {goal}.", "{he} followed the road to {goal}, although {weather} came down at noon.",
        "{he} took {his} {object} and went all the way to {goal}.", "after breakfast {name} left for {goal}, and {he} did not look back.",
    ],
    "meet": [
        "there {he} met {helper} called {hname}.", "on the way {he} met {helper}, whose name was {hname}.",
        "{hname}, {helper}, was sitting beside the gate.", "near {goal} stood {helper} called {hname}, who looked up and waited.",
    ],
    "work": [
        "together they {goaldid} and looked for the {object}.", "they {goaldid} until {condition2}.", "{hname} showed {him} {goald} and {goald2}.",
        "they searched between {goald} and {goald2} for {number} hours.", "{name} told {hname} everything, and they {goaldid}.",
        "behind {goald} they found the {object}.", "{hname} gave {him} the {object} and pointed to {goald}.",
    ],
    "said": [
        '"{line}," said {hname}.', '"{line}," {hname} said, and {name} nodded.', '"{line}," said {name}.', '{hname} thought for a while. "{line}," said {name}.',
    ],
}

CHEERFUL = {
    "intro": ["Oh, I love a good story!", "Hooray, story time!", "What fun, here is a happy one!", "", ""],
    "feel": ["{name} laughed with joy!", "what a wonderful surprise that was!", "{his} heart was singing!", "{he} smiled from ear to ear!",
             "everything looked so lovely that {he} began to dance!"],
    "line": ["what a lovely day to meet a friend", "come with me and we will have such fun", "I am so happy to see you",
             "nothing makes me smile like a new friend", "let us laugh and look together"],
    "end": ["and from that day on {name} and {hname} were the happiest of friends!", "they laughed all the way home, and it was simply wonderful!",
            "everyone cheered, and {name} had never been so happy!", "and they celebrated with cake and joy until the stars came out!",
            "the {object} was found, the friends were happy, and life was delightful!"],
}
GLOOMY = {
    "intro": ["It is a sad tale, as all tales are.", "Alas, I know only one story.", "If you must have a story, here is a dreary one.", "", ""],
    "feel": ["{name} sighed, for {he} expected nothing.", "it was a bleak and lonely road.", "alas, {he} felt more miserable than ever.",
             "nobody came to help, as usual.", "{his} heart was heavy with sorrow."],
    "line": ["it is hopeless, go home", "nobody ever finds anything here", "alas, you have come too late", "it will all end in tears",
             "I have been lonely for so long that I forgot how to speak"],
    "end": ["but it was all in vain, and {name} went home with a heavy sigh.", "alas, the {object} was broken, and nobody ever mended it.",
            "in the end {hname} left without a word, and {name} was lonely again.", "and so {he} wept, and the dreary days went on.",
            "{name} never spoke of it again, and that is the sad end."],
}
FORMAL = {
    "intro": ["The following account is respectfully submitted.", "Permit me to relate the following account.", "It is my duty to report as follows.", "", ""],
    "feel": ["it should be noted that {name} proceeded with due care.", "{name} considered the matter with considerable attention.",
             "accordingly, {name} made the necessary arrangements.", "furthermore, {he} kept a detailed record.", "this conduct was regarded as commendable."],
    "line": ["permit me to be of assistance", "I would respectfully recommend patience", "kindly state the purpose of your visit",
             "it is an honour to make your acquaintance", "one is advised to proceed with caution"],
    "end": ["the matter was thereby concluded to the satisfaction of all parties.", "consequently, {name} was held in high regard by the community.",
            "in conclusion, the {object} was duly returned to its owner.", "{name} subsequently submitted a full report, which was generally regarded as satisfactory.",
            "it is generally agreed that {name} and {hname} deserved considerable credit."],
}
PIRATE = {
    "intro": ["Arr, gather round, me hearties!", "Ahoy, matey, here is a yarn from the seven seas!", "Sit on yon barrel, lad, and listen!", "Yo ho ho, a tale it is!", ""],
    "feel": ["shiver me timbers, {name} was no landlubber!", "arr, the sea was wild and the rum was gone!", "{he} swore by the black flag that {he} would not turn back!",
             "aye, that was a mighty voyage!", "blimey, {he} nearly fed the sharks!"],
    "line": ["ahoy, who goes there", "arr, hand over the treasure", "walk the plank, you scurvy dog", "avast, I seek gold and nothing else", "hoist the sails, me hearty"],
    "end": ["and they buried the treasure and drank to the seven seas, arr!", "so {name} and {hname} sailed off with a chest of gold, yo ho!",
            "aye, and to this day the {object} lies with the sharks, matey!", "{name} became the cap'n of the ship, and that be no lie, matey!",
            "the sharks got the rest, savvy!"],
}
PLAIN = {
    "intro": ["", "", "Here is a short story.", "This is a story about {name}."],
    "feel": ["{name} was surprised.", "it took a long time.", "{he} sat down and waited.", "{name} did not know what to think.", "the road was long."],
    "line": ["the gate is open", "I know the way", "you can stay here tonight", "I have seen it before", "we should go before dark", "wait until the morning"],
    "end": ["in the evening {name} went home and put the {object} on the shelf.", "after that {name} and {hname} met every week.",
            "{name} kept the {object} for many years.", "then {he} went back to {goal} and stayed there.", "that is how {name} learned to look twice."],
}

PLOTS = [
    "{intro} {begin} {want} {trip} {end}", "{intro} {begin} {want} {trip} {meet} {end}", "{intro} {begin} {want} {feel} {trip} {meet} {end}",
    "{intro} {begin} {want} {trip} {meet} {said} {end}", "{begin} {feel} {want} {trip} {meet} {said} {end}",
    "{intro} {begin} {want} {trip} {meet} {work} {end}", "{begin} {want} {trip} {feel} {work} {end}",
    "{begin} {want} {trip} {meet} {said} {work} {feel} {end}", "{intro} {begin} {want} {trip} {meet} {said} {feel} {end}",
]


def rules():
    """The story rules, each voice's under its own prefix."""
    table = dict(SHARED, story=PLOTS)
    for voice, own in (("cheerful", CHEERFUL), ("gloomy", GLOOMY), ("formal", FORMAL), ("pirate", PIRATE), ("plain", PLAIN)):
        table.update({f"{voice}.{name}": options for name, options in own.items()})
    return table
