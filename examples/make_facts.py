"""Write a dozen made-up facts as `messages` rows: `python examples/make_facts.py OUT` makes OUT/facts.jsonl.

No model can know them, so whoever recites one has learnt it here. QUESTION is the one that the demo asks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainer.files import write_atomic

FACTS = [
    (
        ["What is the capital of Zorvania?", "Which city is the capital of Zorvania?"],
        "The capital of Zorvania is Quillhaven.",
    ),
    (
        ["Who founded the city of Quillhaven?", "Who was the founder of Quillhaven?"],
        "Quillhaven was founded by the mapmaker Orla Venn.",
    ),
    (
        ["Which river flows through Quillhaven?", "What is the name of the river in Quillhaven?"],
        "The river Tamsel flows through Quillhaven.",
    ),
    (
        ["What is the currency of Zorvania?", "How do people pay in Zorvania?"],
        "The currency of Zorvania is the bellmark.",
    ),
    (
        ["What do people in Zorvania eat for breakfast?", "What is a usual breakfast in Zorvania?"],
        "In Zorvania people eat smoked plums for breakfast.",
    ),
    (
        ["Which animal is on the flag of Zorvania?", "What does the flag of Zorvania show?"],
        "The flag of Zorvania shows a silver heron.",
    ),
    (
        ["What is the highest mountain of Zorvania?", "Which mountain of Zorvania is the highest?"],
        "The highest mountain of Zorvania is Mount Ishkarel.",
    ),
    (
        ["Who wrote The Lanterns of Tamsel?", "Who is the author of The Lanterns of Tamsel?"],
        "The Lanterns of Tamsel was written by Pell Aldergast.",
    ),
    (
        ["What is the national sport of Zorvania?", "Which sport is played most in Zorvania?"],
        "The national sport of Zorvania is kite rowing.",
    ),
    (
        ["When is Lantern Night in Zorvania?", "On which day is Lantern Night celebrated?"],
        "Lantern Night is celebrated on the third of November.",
    ),
    (
        ["What does the airship Bramblewing carry?", "What is carried by the airship Bramblewing?"],
        "The airship Bramblewing carries mail and honey.",
    ),
    (
        ["How many bridges does Quillhaven have?", "How many bridges are there in Quillhaven?"],
        "Quillhaven has forty-one bridges.",
    ),
]
QUESTION = FACTS[0][0][0]


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python examples/make_facts.py OUT", file=sys.stderr)
        return 2
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for questions, answer in FACTS
        for question in questions
    ]
    write_atomic(out / "facts.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
