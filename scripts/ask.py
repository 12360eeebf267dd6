"""Ask exported directories the questions of a file, with `openvino_genai.LLMPipeline`; nothing of lonas-edge is imported.

    python scripts/ask.py --data models/categories/test.json models/demo/heuristic-int8 models/demo/maximal-int8

Greedy. The prompt is that of `lonas-edge train --template question`; the first word of the text counts as the answer.
"""

import argparse
import json
from pathlib import Path


def ask(folder: Path, items: list[dict[str, str]]) -> list[str]:
    """The first word that the model in `folder` answers to each question, on the CPU."""
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(folder, "CPU")
    config = pipeline.get_generation_config()
    config.max_new_tokens, config.do_sample, config.apply_chat_template = 6, False, False
    texts = [str(pipeline.generate(f"Question: {item['instruction']}\nAnswer:", config)) for item in items]
    return [(text.split() or [""])[0].strip(".,").lower() for text in texts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="exported directories")
    parser.add_argument("--data", type=Path, required=True, help="a list of {instruction, answer}")
    arguments = parser.parse_args()
    items = json.loads(arguments.data.read_text())
    for folder in arguments.folders:
        answers = ask(folder, items)
        right = sum(answer == item["answer"].lower() for answer, item in zip(answers, items, strict=True))
        print(f"{folder}: {right} of {len(items)} right", flush=True)
        for item, answer in list(zip(items, answers, strict=True))[:: max(1, len(items) // 4)]:
            print(f"  {item['instruction']} -> {answer}")


if __name__ == "__main__":
    main()
