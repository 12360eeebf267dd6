"""General texts for a recovery: the definitions of WordNet 3.0, four a text, shuffled.

    apt-get install wordnet-base
    python benchmarks/glosses.py /usr/share/wordnet general.json

Reads `data.noun`, `data.verb` and `data.adj` (format: wndb(5WN)). WordNet has its own licence; nothing of it is shipped.
"""

import argparse
import json
import random
import re
from pathlib import Path

WORDS, TOGETHER = 3, 4  # words of a definition, definitions of a text


def definitions(path: Path) -> list[str]:
    """The words and the definition of each entry of a data file: `sun, Sun: the star that is …`."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence
            continue
        entry, gloss = line.split(" | ", 1)
        fields = entry.split()
        words = [re.sub(r"\(.*\)", "", fields[4 + 2 * index]).replace("_", " ") for index in range(int(fields[3], 16))]
        found.append(f"{', '.join(words[:WORDS])}: {gloss.strip()}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--texts", type=int, default=12_000)
    arguments = parser.parse_args()
    found = [text for part in ("noun", "verb", "adj") for text in definitions(arguments.folder / f"data.{part}")]
    random.Random(0).shuffle(found)
    texts = ["\n".join(found[start : start + TOGETHER]) for start in range(0, len(found), TOGETHER)]
    arguments.output.write_text(json.dumps([{"text": text} for text in texts[: arguments.texts]]))


if __name__ == "__main__":
    main()
