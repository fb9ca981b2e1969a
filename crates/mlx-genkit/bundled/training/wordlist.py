"""Tells a text's voice by counting the words of `voices.json`."""

import json
import pathlib
import re

MARKERS = json.loads((pathlib.Path(__file__).parent / "voices.json").read_text())


def voice_of(text):
    """The voice with the most marker words; 'plain' without any; 'unclear' for a tie."""
    words = re.findall(r"[a-z']+", text.lower())
    counts = {voice: sum(w in markers or w.strip("'") in markers for w in words) for voice, markers in SETS.items()}
    best = max(counts.values())
    if best == 0:
        return "plain"
    leaders = [voice for voice, n in counts.items() if n == best]
    return leaders[0] if len(leaders) == 1 else "unclear"


SETS = {voice: set(words) for voice, words in MARKERS.items()}
