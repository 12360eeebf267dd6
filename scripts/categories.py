"""A small instruction data set of our own: to which kind does a thing belong? Files to train on, to search with, to ask from.

    python scripts/categories.py models/categories

Writes train.json, validation.json and test.json, lists of {instruction, input, output, answer}. No thing is in two of them.
"""

import argparse
import json
import random
from pathlib import Path

KINDS = {
    "fruit": (
        "apple banana cherry grape lemon mango orange papaya peach pear plum raspberry strawberry apricot fig "
        "kiwi melon pineapple blueberry lime"
    ),
    "vegetable": (
        "carrot potato onion spinach cabbage broccoli celery lettuce radish turnip leek garlic pea beetroot "
        "cauliflower asparagus kale artichoke pumpkin parsnip"
    ),
    "mammal": (
        "dog cat horse cow elephant tiger lion whale mouse rabbit bear wolf fox monkey giraffe zebra deer goat sheep bat"
    ),
    "bird": (
        "eagle sparrow owl penguin parrot crow duck swan robin pigeon hawk ostrich seagull falcon raven stork "
        "flamingo woodpecker goose peacock"
    ),
    "fish": (
        "salmon tuna trout cod herring carp shark eel sardine mackerel anchovy bass halibut pike haddock "
        "perch goldfish catfish flounder piranha"
    ),
    "insect": (
        "ant bee wasp butterfly mosquito beetle moth grasshopper dragonfly cricket cockroach ladybug termite "
        "flea housefly hornet firefly locust gnat bumblebee"
    ),
    "tool": (
        "hammer screwdriver saw wrench drill pliers chisel axe shovel rake file crowbar mallet spanner sickle "
        "ladder clamp trowel hoe sandpaper"
    ),
    "vehicle": (
        "car bus train bicycle truck airplane helicopter ship motorcycle tram ferry van taxi tractor scooter "
        "submarine ambulance canoe yacht wagon"
    ),
    "instrument": (
        "piano violin guitar trumpet flute drum cello harp clarinet saxophone trombone banjo oboe accordion "
        "harmonica tuba mandolin bassoon xylophone organ"
    ),
    "garment": (
        "shirt trousers jacket coat skirt dress sweater sock glove scarf hat shoe jeans blouse vest pajamas "
        "boot cap cardigan raincoat"
    ),
}
QUESTIONS = (
    "What kind of thing is {thing}?",
    "To which group does {thing} belong?",
    "Which word says what {thing} is?",
)
TEST, VALIDATION = 6, 2  # things of each kind that the training does not name; each is asked about once


def build(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Items of each file, in the format of the reference's data."""
    draw = random.Random(seed)
    found: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}
    for kind, words in KINDS.items():
        things = words.split()
        draw.shuffle(things)
        for index, word in enumerate(things):
            thing = f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
            name = "test" if index < TEST else "validation" if index < TEST + VALIDATION else "train"
            for question in QUESTIONS if name == "train" else QUESTIONS[:1]:
                instruction = question.format(thing=thing)
                found[name].append({"instruction": instruction, "input": "", "output": kind, "answer": kind})
    draw.shuffle(found["train"])
    asked = [item["instruction"] for items in found.values() for item in items]
    assert len(asked) == len(set(asked))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, items in build().items():
        (arguments.output / f"{name}.json").write_text(json.dumps(items, indent=1) + "\n")
        print(f"{arguments.output}/{name}.json: {len(items)} questions")


if __name__ == "__main__":
    main()
