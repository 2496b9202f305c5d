#!/usr/bin/env python3
"""Scores of 200 made-up chains by the formula that circulates for LIMO's, as Python computes them: tests/fixtures/chain_score.json.

    python tools/golden/chain_score.py

Length min(words / 2000, 1) weighs 0.30; words of verification, exploration and logic, counted as substrings of the text in lower case, divided by the number of words and
times 1000, weigh 0.20, 0.25 and 0.25.
"""

import json
import random
from pathlib import Path

VERIFY = ["check", "verify", "confirm", "validate", "let me verify"]
EXPLORE = ["perhaps", "might", "maybe", "alternatively", "let me try"]
LOGIC = ["therefore", "since", "because", "thus", "hence", "so"]
OTHER = ["also", "Almighty", "checkers", "thusly", "sincere", "reason", "the", "x^2", "\\frac{1}{2}", "İstanbul", "因此", "Straße", "soso", "let", "me", "try", "ΣΑΣ", "answer", "\n\n", "\t", "\u3000"]


def score(text):
    words = text.split()
    lower = text.lower()
    rate = lambda names: sum(lower.count(name) for name in names) / len(words) * 1000 if words else 0.0
    parts = dict(length=min(len(words) / 2000, 1), verification=rate(VERIFY), exploration=rate(EXPLORE), connectives=rate(LOGIC))
    total = 0.3 * parts["length"] + 0.2 * parts["verification"] + 0.25 * parts["exploration"] + 0.25 * parts["connectives"]
    return dict(score=total, words=len(words), **parts)


def main():
    draw = random.Random(3)

    def text():
        pool = [word for names in (VERIFY, EXPLORE, LOGIC) for word in names] + OTHER * draw.randint(1, 4)
        spelt = lambda word: draw.choice([word, word, word.upper(), word.capitalize()]) + draw.choice(["", "", "", ",", ".", "?"])
        # Short ones keep the file small; a few are longer than the 2000 words that count.
        return draw.choice(["", " ", "\n"]).join(["", *(draw.choice([" ", " ", "\n"]) + spelt(draw.choice(pool)) for _ in range(draw.choice([0, 1, 2, 5, 20, 50, 80])))])

    texts = [text() for _ in range(197)] + ["so " * 2500, "because we check " * 700, "word " * 1999]
    rows = [dict(text=text, **score(text)) for text in texts]
    path = Path(__file__).resolve().parents[2] / "tests/fixtures/chain_score.json"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=0) + "\n")
    print(f"{path}: {len(rows)} texts, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
