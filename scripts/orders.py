"""Write a chat data set: orders in plain English, and their fields as JSON. All texts are generated.

    python scripts/orders.py train.jsonl --examples 2000
    python scripts/orders.py test.jsonl --examples 500 --seed 1

A line is a conversation: {"messages": [{"role": "user", …}, {"role": "assistant", …}]}.
"""

import argparse
import json
import random
from pathlib import Path

ASKED = "Extract customer, product, quantity, city and date from the order as JSON.\n\n"
FIRST = "Ada, Ben, Carla, David, Elena, Farid, Grace, Hugo, Ines, Jonas, Kira, Liam, Mona, Nils, Olga, Paul, Quinn, Rosa, Samir"
LAST = (
    "Abel, Baker, Costa, Dietz, Evans, Fischer, Garcia, Hansen, Ito, Jansen, Keller, Lopez, Meyer, Novak, Olsen, Petrov, Rossi"
)
PRODUCTS = (
    "desk lamp, office chair, water bottle, phone case, garden hose, coffee grinder, wool blanket, kitchen scale, bike helmet, "
    "travel mug, table fan, rain jacket, picture frame, board game, camping tent, yoga mat, wall clock, door mat"
)
CITIES = (
    "Berlin, Lyon, Porto, Oslo, Vienna, Prague, Dublin, Milan, Ghent, Turku, Seville, Zagreb, Athens, Leeds, Basel, Riga, Graz"
)
MONTHS = "January, February, March, April, May, June, July, August, September, October, November, December"
NUMBERS = "one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve"
OPENINGS = ("", "Hello, ", "Good morning! ", "Hi team, ", "Dear shop, ")
ORDERS = (
    "my name is {name} and I would like {count} {product}s, delivered to {city} by {date}.",
    "please send {count} {product}s to {name} in {city}. We need them on {date}.",
    "{name} here. Could you ship {count} {product}s? The address is in {city}, and {date} would be fine.",
    "by {date} I need {count} {product}s in {city}. Yours, {name}",
    "this is {name} from {city}. I order {count} {product}s, to arrive on {date}.",
    "can {count} {product}s reach {city} before {date}? The customer is {name}.",
    "we promised {name} {count} {product}s for {date}; the parcel goes to {city}.",
    "order for {city}: {count} {product}s. Date: {date}. Customer: {name}.",
)
CLOSINGS = ("", " Thank you!", " Please confirm.", " The last order was great.", " Call me if anything is unclear.")


def order(rng: random.Random) -> dict[str, list[dict[str, str]]]:
    """Draw a conversation of one order and its fields."""

    def drawn(names: str) -> str:
        return rng.choice(names.split(", "))

    quantity, year, month, day = rng.randint(2, 12), rng.choice((2026, 2027)), rng.randint(1, 12), rng.randint(1, 28)
    fields = {
        "customer": f"{drawn(FIRST)} {drawn(LAST)}",
        "product": drawn(PRODUCTS),
        "quantity": quantity,
        "city": drawn(CITIES),
        "date": f"{year}-{month:02}-{day:02}",
    }
    name = MONTHS.split(", ")[month - 1]
    date = rng.choice((f"{day} {name} {year}", f"{name} {day}, {year}", f"{day}/{month}/{year}"))
    count = rng.choice((str(quantity), NUMBERS.split(", ")[quantity - 1]))
    written = {"name": fields["customer"], "count": count, "product": fields["product"], "city": fields["city"], "date": date}
    text, opening = rng.choice(ORDERS).format_map(written), rng.choice(OPENINGS)
    text = opening + (text if opening.endswith(", ") else text[0].upper() + text[1:]) + rng.choice(CLOSINGS)
    return {"messages": [{"role": "user", "content": ASKED + text}, {"role": "assistant", "content": json.dumps(fields)}]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(f"orders/{arguments.seed}")
    lines = [json.dumps(order(rng)) for _ in range(arguments.examples)]
    arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
