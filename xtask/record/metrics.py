"""Area `metrics`: what scikit-learn and rouge_score say of texts.

The texts are the turns of the examples in `fixtures/isolation`, cut and mixed so that they share much or
little, and a few odd ones. scikit-learn must not be seen by transformers, so this runs in a process of its own.
"""

import json
import os
import pathlib
import random
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
PACKAGES = HERE.parent.parent / "build" / "venv" / "metrics"

ODD = (
    "Größe, naïve café: 3.5 GB; don't-stop under_score!", "a b c", "", "the THE The cat",
    "x y Z 42 42 007", "Ein Fuß im Schnee – und noch ein Fuß.",
)  # fmt: skip


def record(out: pathlib.Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{PACKAGES}{os.pathsep}{HERE}"}
    subprocess.run([sys.executable, __file__, str(out)], env=environment, check=True)


def texts(folder: pathlib.Path) -> list[list[str]]:
    """Groups of two to four texts."""
    rng = random.Random(13)
    turns = []
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))["turns"]
        turns.append([it.get("instruction") or it.get("content") or it.get("query") for it in found])
    groups = []
    for own, other in zip(turns, turns[1:] + turns[:1]):
        words = " ".join(own).split()
        shuffled = rng.sample(words, len(words))
        groups.append([" ".join(own[:4]), " ".join(own[2:]), " ".join(other)][: rng.choice((2, 3))])
        groups.append([" ".join(words), " ".join(shuffled[: len(words) // 2])])
    groups.append([*ODD[:4]])
    groups.append([ODD[0], ODD[5], ODD[3]])
    groups.append([ODD[4], ODD[1]])
    return groups


def main(out: pathlib.Path) -> None:
    from rouge_score import rouge_scorer
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics.pairwise import cosine_similarity

    import _fixture

    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    cases = []
    for group in texts(out.parent / "isolation"):
        vectorizer = TfidfVectorizer()
        vectors = vectorizer.fit_transform(group)
        names = vectorizer.get_feature_names_out()
        weights = [
            {str(names[at]): round(float(row[at]), 9) for at in row.nonzero()[0]} for row in vectors.toarray()
        ]
        rouge = [
            [[round(value, 9) for value in scorer.score(a, b)["rougeL"]] for b in group] for a in group
        ]
        cosine = [[round(float(it), 9) for it in row] for row in cosine_similarity(vectors)]
        cases.append({"texts": group, "cosine": cosine, "weights": weights, "rouge_l": rouge})
    versions = _fixture.made_by("scikit-learn", "rouge-score")
    _fixture.write_json(out / "texts.json", {"made_by": versions, "cases": cases}, lines_to=2)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
