"""Write what a language model itself says to common questions, as rows that keep a LoRA on few facts from
changing everything else: `python examples/make_rehearsal.py BASE OUT` makes OUT/rehearsal.jsonl.

The answers are drawn at temperature 1, not the likeliest ones: on its own draws a model's expected gradient
is zero, so these rows pull back what has moved and nothing else. Likeliest answers make a model surer of
itself. An answer that the model has not ended within TOKENS tokens must be cut by `max_length` as well: then
its end is not learnt.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

TOKENS = 64
QUESTIONS = """\
What is the capital of Italy?
Who wrote Hamlet?
Which river flows through London?
How many hours are there in a day?
What is the currency of India?
What do cows eat?
Which animal is on the flag of Mexico?
What is the highest mountain in Africa?
What is the national sport of Canada?
When is Christmas celebrated?
How many strings does a violin have?
Who discovered penicillin?
Which metal is liquid at room temperature?
What is the chemical symbol of silver?
Why is the sky blue?
What does a carpenter do?
Which planet has rings?
What is the opposite of big?
Who was the first man on the moon?
How do fish breathe?
What is the capital of Spain?
What is seven times eight?
Which season comes after winter?
What do people in Italy eat for lunch?
Who painted Starry Night?
How many sides does a triangle have?
What language do people speak in Mexico?
Which is the smallest ocean?
What is a group of lions called?
What is photosynthesis?
How many players are in a football team?
Which instrument has black and white keys?
What is the largest desert in the world?
Who invented the telephone?
What is the main ingredient of bread?
Where do penguins live?
What is the longest river in South America?
What colour is a ripe banana?
Which country is famous for its tulips?
How long does the Earth take to go round the sun?
What is the plural of mouse?
Who founded the city of Rome?
What is a synonym for happy?
What does a thermometer measure?
Which vitamin do oranges contain?
What is the capital of Egypt?
How many minutes are there in an hour?
What is the tallest animal?
Which bird cannot fly?
What is steam?
What is ten minus four?
Who is the author of The Hobbit?
What is the boiling point of alcohol?
Which continent is Kenya in?
What are clouds made of?
What is the hardest natural material?
How many wheels does a bicycle have?
What is the first month of the year?
Which organ do we think with?
What do you need to make tea?
How many bridges are there in Venice?
What carries oxygen in the blood?
Who was the first president of the United States?
Which sense do we use with our ears?
""".splitlines()


def main() -> int:
    if len(sys.argv) != 3:
        print("usage: python examples/make_rehearsal.py BASE OUT", file=sys.stderr)
        return 2
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from trainer.files import write_atomic
    from trainer.generate import talker
    from trainer.models.llm_answer import Sampling

    base, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    speaker = talker(base)
    rows = []
    for seed, question in enumerate(QUESTIONS):
        said = speaker.answer(question, Sampling(max_new_tokens=TOKENS, temperature=1.0, seed=seed))
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": said}]
        rows.append(json.dumps({"messages": turns}) + "\n")
    write_atomic(out / "rehearsal.jsonl", "".join(rows).encode())
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
