"""Does `lonas-edge eval` answer the math tasks as the reference's loop does, and how fast beside it?

    python benchmarks/math_parity.py ADAPTER BASE FP32_DIR INT8_DIR --datasets DIR --work WORK \
        --output benchmarks/results/math_parity.json

ADAPTER is a trained (super-)adapter on BASE, FP32_DIR and INT8_DIR its maximal network as IRs. The loop is written here from
the reference's script (LoNAS/run_math.py) in plain transformers and PEFT, fp32, the adapter merged, one prompt at a time: its
prompt, 4 beams, 256 new tokens, its rules for the answer. `lonas-edge eval` is run as a command, on the fp32 IR with f32 hints
and an f32 KV cache, on the INT8 IR with the device's defaults; its logs say which samples it chose. Both have `--threads`
threads. Speed is told by processor time, which other programs on the machine change least: of the loop's generation alone, and
of the whole command, imports and compilation included. What was found is kept in WORK: a run that was stopped goes on.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from export_cost import conditions
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

TASKS = ("gsm8k", "AQuA", "mawps")  # the collection's SVAMP was not at hand
NUM_BEAMS, NEW_TOKENS, MISS = 4, 256, 0.001
F32 = ("INFERENCE_PRECISION_HINT=f32", "KV_CACHE_PRECISION=f32")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapter", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("fp32", type=Path)
    parser.add_argument("int8", type=Path)
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=20, help="of each task")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--beside", default="nothing", help="what else the machine was doing, for the record")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def evaluated(arguments: argparse.Namespace, folder: Path, properties: tuple[str, ...]) -> dict[str, Any]:
    """What `lonas-edge eval` found: its logs by task, and the processor seconds that it took in all."""
    output = arguments.work / f"eval_{folder.name}"
    given = [f"--property={one}" for one in (*properties, f"INFERENCE_NUM_THREADS={arguments.threads}")]
    asked = [
        "--tasks",
        ",".join(TASKS),
        "--limit",
        str(arguments.samples),
        "--prompt",
        "lonas",
        "--datasets",
        arguments.datasets,
    ]
    command = [Path(sys.executable).parent / "lonas-edge", "eval", folder, *asked, *given, "--fresh"]
    kept = output.with_suffix(".json")
    if not kept.exists():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*command, "--overwrite", "--output", output], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        kept.write_text(json.dumps(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    logs = {task: next(output.glob(f"samples/*/samples_{task}.jsonl")).read_text().splitlines() for task in TASKS}
    return {
        "cpu_seconds": json.loads(kept.read_text()),
        "logs": {task: [json.loads(line) for line in lines] for task, lines in logs.items()},
    }


def prompt_of(instruction: str) -> str:
    """The script's, which shows no input."""
    return f"""Below is an instruction that describes a task. Write a response that appropriately completes the request. 

                            ### Instruction:
                            {instruction}

                            ### Response:
                            """  # noqa: W291


def generated(model: Any, tokenizer: Any, instruction: str) -> str:
    """All of one sample's text behind the prompt."""
    ids = tokenizer(prompt_of(instruction), return_tensors="pt")
    with torch.no_grad():
        tokens = model.generate(
            **ids, max_new_tokens=NEW_TOKENS, num_beams=NUM_BEAMS, do_sample=False, pad_token_id=tokenizer.eos_token_id
        )
    return tokenizer.decode(tokens[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def judged(task: str, text: str, answer: str) -> tuple[str | float, bool]:
    """The answer in a text, and whether it is right, by the script's rules."""
    response = text.split("### Response:")[0].strip()
    if task == "AQuA":
        letters = re.findall("A|B|C|D|E", response)
        return (letters[0], letters[0] == answer) if letters else ("", False)
    numbers = re.findall(r"-?\d+\.?\d*", response.replace(",", ""))
    number = float(numbers[-1]) if numbers else float("inf")
    return number, abs(float(answer) - number) <= MISS


def looped(arguments: argparse.Namespace, chosen: dict[str, list[dict[str, Any]]], tokenizer: Any) -> dict[str, Any]:
    """Texts and processor seconds of every sample."""
    path = arguments.work / "loop.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    model = AutoModelForCausalLM.from_pretrained(arguments.base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, arguments.adapter).merge_and_unload().eval()
    for number in range(arguments.samples):  # one of each task in turn
        for task, sample in ((task, samples[number]) for task, samples in chosen.items()):
            key = f"{task} {sample['instruction']}"
            if key not in known:
                start = time.process_time()
                text = generated(model, tokenizer, sample["instruction"])
                known[key] = {"text": text, "cpu_seconds": time.process_time() - start}
                path.write_text(json.dumps(known))
                print(f"{len(known)}: {task}, {known[key]['cpu_seconds']:.1f} s", flush=True)
    return {task: [known[f"{task} {sample['instruction']}"] for sample in samples] for task, samples in chosen.items()}


def compared(
    task: str, logs: list[dict[str, Any]], texts: list[dict[str, Any]], samples: list[dict[str, Any]]
) -> dict[str, Any]:
    """Ours beside the loop's: texts, answers, and what counts as right."""
    ours = [(log["resps"][0][0], log["filtered_resps"][0], bool(log["acc"])) for log in logs]
    loop = [(one["text"], *judged(task, one["text"], s["answer"])) for one, s in zip(texts, samples, strict=True)]
    answers = [
        (one == other if task == "AQuA" else float(one or "inf") == other)
        for (_, one, _), (_, other, _) in zip(ours, loop, strict=True)
    ]
    return {
        "samples": len(ours),
        "identical_texts": sum(one[0] == other[0] for one, other in zip(ours, loop, strict=True)),
        "identical_answers": sum(answers),
        "identical_verdicts": sum(one[2] == other[2] for one, other in zip(ours, loop, strict=True)),
        "right": {"ours": sum(one[2] for one in ours), "loop": sum(one[2] for one in loop)},
        "different": [
            {"sample": log["doc_id"], "ours": one[0], "loop": other[0]}
            for log, one, other in zip(logs, ours, loop, strict=True)
            if one[0] != other[0]
        ],
    }


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    fp32 = evaluated(arguments, arguments.fp32, F32)
    stored = {task: json.loads((arguments.datasets / task / "test.json").read_text()) for task in TASKS}
    chosen = {task: [stored[task][log["doc_id"]] for log in logs] for task, logs in fp32["logs"].items()}
    loop = looped(arguments, chosen, tokenizer)
    int8 = evaluated(arguments, arguments.int8, ())
    parity = {task: compared(task, fp32["logs"][task], loop[task], chosen[task]) for task in TASKS}
    seconds = [one["cpu_seconds"] for texts in loop.values() for one in texts]
    lengths = [len(tokenizer(one["text"])["input_ids"]) for texts in loop.values() for one in texts]
    per_sample = {
        "loop, PyTorch fp32": sum(seconds) / len(seconds),
        "lonas-edge, fp32 IR with f32 hints": fp32["cpu_seconds"] / len(seconds),
        "lonas-edge, INT8 IR": int8["cpu_seconds"] / len(seconds),
    }
    results = {
        "parity": parity,
        "int8_beside_the_loop": {task: compared(task, int8["logs"][task], loop[task], chosen[task]) for task in TASKS},
        "new_tokens": {"mean": sum(lengths) / len(lengths), "most": max(lengths)},
        "cpu_seconds_a_sample": per_sample,
    }
    for found in results["int8_beside_the_loop"].values():
        del found["different"]  # its weights differ: texts may
    print(json.dumps(results, indent=1, ensure_ascii=False))
    settings = {"num_beams": NUM_BEAMS, "new_tokens": NEW_TOKENS, "samples": arguments.samples, "threads": arguments.threads}
    told = {
        "conditions": {**conditions(), "beside": arguments.beside},
        "settings": {**settings, "adapter": arguments.adapter.name, "base": arguments.base.name},
        "results": results,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
