"""Text from exported directories by `openvino_genai.LLMPipeline`; nothing of lonas-edge is imported.

    python scripts/generate.py models/demo/heuristic-int8

Greedy continuations of plain prompts. `LLMPipeline.generate` wraps a prompt in the model's chat template unless it is told
not to, so that is switched off here (`--chat` leaves it on).
"""

import argparse
from pathlib import Path

PROMPTS = (
    "The sun is",
    "The capital of France is",
    "Water boils at a temperature of",
)


def generate(folder: Path, prompts: list[str], new_tokens: int, chat: bool) -> list[str]:
    """Greedy continuations of the prompts by the model in `folder`, on the CPU."""
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(folder, "CPU")
    config = pipeline.get_generation_config()
    config.max_new_tokens, config.do_sample, config.apply_chat_template = new_tokens, False, chat
    return [str(pipeline.generate(prompt, config)) for prompt in prompts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="exported directories")
    parser.add_argument("--prompt", action="append", help="a prompt; may be repeated. Default: three plain ones")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--chat", action="store_true", help="apply the model's chat template")
    arguments = parser.parse_args()
    prompts = arguments.prompt or list(PROMPTS)
    for folder in arguments.folders:
        print(f"{folder}:")
        for prompt, text in zip(prompts, generate(folder, prompts, arguments.new_tokens, arguments.chat), strict=True):
            print(f"  {prompt!r} -> {text!r}", flush=True)


if __name__ == "__main__":
    main()
