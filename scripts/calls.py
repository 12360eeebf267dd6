"""Write a chat data set: requests in plain English, and the call of one of three functions. All texts are generated.

    python scripts/calls.py train.jsonl --examples 600
    python scripts/calls.py test.jsonl --examples 300 --seed 1
    python scripts/calls.py long.jsonl --examples 24 --seed 2 --turns 40      requests in a conversation; the last is to answer

A line is a conversation with `tools`; its answer has `tool_calls`. The model's chat template must know both.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

TOOLS = {
    "set_lamp": {"room": "string", "brightness": "integer", "color": "string"},
    "book_table": {"restaurant": "string", "people": "integer", "time": "string"},
    "send_message": {"recipient": "string", "text": "string"},
}
ROOMS = "kitchen, living room, bedroom, bathroom, hallway, office, garage, cellar, nursery, dining room, attic, balcony"
COLORS = "warm white, cold white, red, green, blue, orange, purple, yellow"
PLACES = (
    "Casa Verde, Old Mill, Blue Door, Lotus Garden, Little Lisbon, Harbour Inn, Golden Fork, Red Lantern, Olive Tree, La Piazza"
)
NAMES = "Ada, Ben, Carla, David, Elena, Farid, Grace, Hugo, Ines, Jonas, Kira, Liam, Mona, Nils, Olga, Paul, Quinn, Rosa, Samir"
TEXTS = (
    "I am ten minutes late, the parcel has arrived, please bring milk, the meeting is at noon, call me tonight, "
    "see you on Monday, the car is ready, dinner is at eight, I found your keys, the train was cancelled, "
    "thank you for the flowers, I will be home at six"
)
ASKED = {
    "set_lamp": (
        "Set the lamp in the {room} to {color} at {brightness} percent.",
        "Could I have {color} light in the {room}, {brightness} % please?",
        "{room}: {color}, brightness {brightness}.",
    ),
    "book_table": (
        "Book a table for {people} at {restaurant} at {time}.",
        "We are {people} tonight and would like to eat at {restaurant}, {time} o'clock.",
        "Please reserve at {restaurant}: {time}, {people} people.",
    ),
    "send_message": (
        "Tell {recipient} that {text}.",
        "Send {recipient} a message: {text}",
        "Write to {recipient}: {text}.",
    ),
}


def conversation(rng: random.Random, turns: int = 1) -> dict[str, Any]:
    """Draw a conversation of requests and the calls that they ask for; each but the last call has a result."""
    messages: list[dict[str, Any]] = []
    for _ in range(turns):
        messages += [*([{"role": "tool", "content": '{"done": true}'}] if messages else []), *call(rng)]
    return {"tools": definitions(), "messages": messages}


def call(rng: random.Random) -> list[dict[str, Any]]:
    """Draw a request and the call that it asks for."""

    def drawn(names: str) -> str:
        return rng.choice(names.split(", "))

    name = rng.choice(list(TOOLS))
    values: dict[str, Any] = {
        "room": drawn(ROOMS),
        "brightness": 5 * rng.randint(1, 20),
        "color": drawn(COLORS),
        "restaurant": drawn(PLACES),
        "people": rng.randint(2, 12),
        "time": f"{rng.randint(17, 22)}:{rng.choice(('00', '15', '30', '45'))}",
        "recipient": drawn(NAMES),
        "text": drawn(TEXTS),
    }
    text = rng.choice(ASKED[name]).format_map(values)
    function = {"name": name, "arguments": {each: values[each] for each in TOOLS[name]}}
    answer = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    return [{"role": "user", "content": text[0].upper() + text[1:]}, answer]


def definitions() -> list[dict[str, Any]]:
    """The functions in OpenAI's form."""
    return [
        {
            "type": "function",
            "function": {
                "name": name,
                "description": name.replace("_", " ").capitalize(),
                "parameters": {
                    "type": "object",
                    "properties": {each: {"type": kind} for each, kind in fields.items()},
                    "required": list(fields),
                },
            },
        }
        for name, fields in TOOLS.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--turns", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(f"calls/{arguments.seed}")
    lines = [json.dumps(conversation(rng, arguments.turns)) for _ in range(arguments.examples)]
    arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
