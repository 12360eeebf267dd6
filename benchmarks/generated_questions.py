"""Study: let a model write questions and answers, as more data for `recovery_methods.py --extra`.

    python benchmarks/generated_questions.py EXPORTED --data train.json --output generated.json [--count 4000] [--seed 1]

EXPORTED is an OpenVINO directory of a LoRA that was trained with the prompt `question`. Each question continues the first three
words of a training question, and is then answered; both are sampled at temperature 1. Questions of the training data and
repeated ones are dropped.
"""

import argparse
import json
import random
import time
from pathlib import Path

import openvino_genai

BATCH, WORDS = 256, 3


class Writer:
    """A model that continues texts."""

    def __init__(self, folder: Path, threads: int, seed: int):
        schedule = openvino_genai.SchedulerConfig()
        schedule.cache_size = 2  # GB
        properties = {"INFERENCE_NUM_THREADS": threads}
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(str(folder), schedule, "CPU", properties)
        self.seed = seed

    def continued(self, prompts: list[str], tokens: int) -> list[str]:
        """Sample one line after each prompt; empty where it does not end within so many tokens."""
        configs = []
        for _ in prompts:
            config = openvino_genai.GenerationConfig(max_new_tokens=tokens, do_sample=True, temperature=1.0)
            config.apply_chat_template, config.rng_seed, self.seed = False, self.seed, self.seed + 1
            configs.append(config)
        results = self.pipeline.generate(prompts, configs)
        lines = (result.m_generation_ids[0].strip() for result in results)
        return ["" if "\n" in line else line for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exported", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng, writer, start = (
        random.Random(arguments.seed),
        Writer(arguments.exported, arguments.threads, arguments.seed),
        time.time(),
    )
    known = [example["instruction"] for example in json.loads(arguments.data.read_text())]
    seen, found = set(known), []
    while len(found) < arguments.count:
        starts = [" ".join(rng.choice(known).split()[:WORDS]) for _ in range(BATCH)]
        ends = writer.continued([f"Question: {words}" for words in starts], 60)
        questions = list(dict.fromkeys(f"{words} {end}" for words, end in zip(starts, ends, strict=True) if end))
        questions = [question for question in questions if question not in seen]
        answers = writer.continued([f"Question: {question}\nAnswer:" for question in questions], 30)
        seen.update(questions)
        found += [
            {"instruction": question, "input": "", "output": answer}
            for question, answer in zip(questions, answers, strict=True)
            if answer
        ]
        print(f"{len(found)} of {arguments.count}, {time.time() - start:.0f} s", flush=True)
        arguments.output.write_text(json.dumps(found[: arguments.count], indent=1))


if __name__ == "__main__":
    main()
