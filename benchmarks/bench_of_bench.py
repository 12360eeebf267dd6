"""Does `lonas-edge bench` tell the truth? Its figures beside known ones, on an exported directory.

    python benchmarks/bench_of_bench.py models/bench/smollm2-135m-heuristic-int8 --output benchmarks/results/bench_of_bench.json

1. An arm that sleeps comes out within 2 %.
2. A repeated prompt is not answered from a cache (LLMPipeline's default is shown beside it).
3. TTFT and TPOT agree within 10 % with a bare `openvino` infer-request loop and with openvino_genai's own PerfMetrics on a
   pipeline made with its defaults, on distinct prompts, in turn.
4. An arm compared with itself: ten runs, at least nine intervals contain 1, none wider than ±5 %.
5. With the arms in a fixed order and in its reverse, no conclusion changes.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from export_cost import conditions

from lonas_edge.bench import machine
from lonas_edge.bench.arms import Arm, Case
from lonas_edge.bench.measure import PromptSource, Schedule, measure
from lonas_edge.bench.runners import GenaiRunner, runtime_properties
from lonas_edge.bench.session import Plan, run_session
from lonas_edge.bench.statistics import speedup
from lonas_edge.bench.timing import Timing, generate_greedy
from lonas_edge.bench.worker import ArmProcess
from lonas_edge.exporting.exported import open_exported

CASE = Case(256, 32)


class Sleeper:
    """An arm that takes 50 ms to the first token and 8 ms to each that follows."""

    alive = True
    ttft, tpot = 0.050, 0.008

    def run(self, _prompts: Any, new_tokens: int) -> Timing:
        def sleep(seconds: float) -> int:
            end = time.perf_counter() + seconds
            time.sleep(seconds - 0.001)  # wakes up to a quarter of a millisecond late: the rest is waited for
            while time.perf_counter() < end:
                pass
            return 0

        return generate_greedy(lambda: sleep(self.ttft), lambda _: sleep(self.tpot), new_tokens, time.perf_counter)[1]


class BareLoop:
    """The IR in a plain infer request, greedy, state reset before each prompt.

    The head is computed for the last position only, as openvino_genai does: for all 256 it is a quarter of this model's TTFT.
    """

    alive = True

    def __init__(self, arm: Arm, threads: int):
        import openvino as ov
        import openvino.opset13

        core = ov.Core()
        model = core.read_model(arm.path / "openvino_model.xml")
        head = next(node for node in reversed(model.get_ordered_ops()) if node.get_type_name() == "MatMul")
        hidden = head.input_value(0)
        one = [ov.opset13.constant([value]) for value in (-1, 2**31 - 1, 1, 1)]  # start, stop, step, axis
        head.input(0).replace_source_output(ov.opset13.slice(hidden, *one).output(0))
        model.validate_nodes_and_infer_types()
        compiled = core.compile_model(model, arm.device, dict(runtime_properties(arm, threads)))
        self._request = compiled.create_infer_request()
        self._names = {name for port in compiled.inputs for name in port.get_names()}

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Timing:
        import numpy as np

        self._request.reset_state()
        seen = 0

        def step(ids: Any) -> Any:
            nonlocal seen
            batch, length = ids.shape
            inputs = {
                "input_ids": ids,
                "attention_mask": np.ones((batch, seen + length), np.int64),
                "position_ids": np.tile(np.arange(seen, seen + length), (batch, 1)),
                "beam_idx": np.arange(batch, dtype=np.int32),
            }
            seen += length
            found = self._request.infer(
                {name: value for name, value in inputs.items() if name in self._names}, share_outputs=True
            )
            return found["logits"][:, -1].argmax(-1)[:, None].astype(np.int64)

        ids = np.array(prompts, np.int64)
        return generate_greedy(lambda: step(ids), step, new_tokens, time.perf_counter)[1]


class DefaultPipeline:
    """LLMPipeline with its own defaults, prefix cache included, by its own PerfMetrics."""

    alive = True

    def __init__(self, arm: Arm, threads: int):
        import openvino_genai

        self._pipeline = openvino_genai.LLMPipeline(arm.path, arm.device, **runtime_properties(arm, threads))

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Timing:
        import numpy as np
        import openvino as ov
        import openvino_genai

        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = new_tokens
        config.ignore_eos, config.do_sample, config.apply_chat_template = True, False, False
        ids = np.array(prompts, np.int64)
        inputs = openvino_genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        metrics = self._pipeline.generate(inputs, config).perf_metrics
        first, each = metrics.get_ttft().mean / 1e3, metrics.get_tpot().mean / 1e3
        times = tuple(first + each * index for index in range(new_tokens))
        return Timing(times, times[-1])


@dataclass(frozen=True)
class Fixed(Schedule):
    """Arms in the order of their names, or in its reverse."""

    reverse: bool = False

    def order(self, arms: Sequence[str], case: Case, number: int) -> list[str]:
        return sorted(arms, reverse=self.reverse)


def sleeping(rounds: int) -> dict[str, float]:
    found = measure({"sleeper": Sleeper()}, [CASE], Schedule(rounds, 1), PromptSource(100, 0)).timings("sleeper", CASE)
    ttft, tpot = (statistics.median(getattr(t, name) for t in found) for name in ("ttft", "tpot"))
    return {"ttft_ratio": ttft / Sleeper.ttft, "tpot_ratio": tpot / Sleeper.tpot}


def repeated(arm: Arm, threads: int, vocabulary: int) -> dict[str, float]:
    source, found = PromptSource(vocabulary, 1), {}
    for name, runner in (("ours", GenaiRunner(arm, threads)), ("default_pipeline", DefaultPipeline(arm, threads))):
        distinct = [runner.run(source.next(CASE), 4).ttft for _ in range(9)][1:]
        prompt = source.next(CASE)
        same = [runner.run(prompt, 4).ttft for _ in range(9)][1:]  # one after the other: other prompts would push it out
        found[f"{name}_repeated_over_distinct_ttft"] = statistics.median(same) / statistics.median(distinct)
    return found


def agreement(arm: Arm, threads: int, vocabulary: int, rounds: int) -> dict[str, Any]:
    """Our runner over each of the others, in turn in this process."""
    arms = {"ours": GenaiRunner(arm, threads), "bare": BareLoop(arm, threads), "genai": DefaultPipeline(arm, threads)}
    for runner in arms.values():
        runner.alive = True  # type: ignore[union-attr]
    found = measure(arms, [CASE], Schedule(rounds, 2), PromptSource(vocabulary, 2))  # type: ignore[arg-type]
    result = {}
    for other in ("bare", "genai"):
        for metric in ("ttft", "tpot"):
            gain = speedup(*found.paired("ours", other, CASE, lambda timing, name=metric: getattr(timing, name)))
            result[f"{metric}_over_{other}"] = asdict(gain)
    return result


def against_itself(
    arm: Arm, placement: machine.Placement, vocabulary: int, rounds: int, starts: int, runs: int, config: Any
) -> list[dict[str, Any]]:
    found = []
    for run in range(runs):
        pair = [replace(arm, name="a"), replace(arm, name="b")]
        schedule, prompts = Schedule(rounds, 2, run), PromptSource(vocabulary, run)
        done = run_session(pair, Plan(config, [CASE], schedule, starts, placement, prompts)).measured
        gains = {
            metric: speedup(*done.paired("b", "a", CASE, lambda timing, name=metric: getattr(timing, name)))
            for metric in ("ttft", "tpot")
        }
        found.append({metric: {**asdict(gain), "half_width": gain.half_width} for metric, gain in gains.items()})
        for metric in gains:
            other, one, starts_of = done.paired("b", "a", CASE, lambda timing, name=metric: getattr(timing, name))
            found[-1][metric]["ratios"] = [[start, a / b] for a, b, start in zip(other, one, starts_of, strict=True)]
        print(
            f"against itself, run {run + 1}:",
            {m: f"{g.ratio:.3f} [{g.low:.3f}, {g.high:.3f}]" for m, g in gains.items()},
            flush=True,
        )
    return found


def swapped(arm: Arm, other: Arm, placement: machine.Placement, vocabulary: int, rounds: int) -> dict[str, Any]:
    found = {}
    for reverse in (False, True):
        with ArmProcess(arm, placement) as first, ArmProcess(other, placement) as second:
            first.wait_loaded()
            second.wait_loaded()
            schedule = Fixed(rounds, 2, 0, reverse)
            done = measure({"a": first, "b": second}, [CASE], schedule, PromptSource(vocabulary, 5))
        gains = {
            metric: asdict(speedup(*done.paired("b", "a", CASE, lambda timing, name=metric: getattr(timing, name))))
            for metric in ("ttft", "tpot")
        }
        found["other first" if reverse else "subnet first"] = gains
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("exported", type=Path)
    parser.add_argument("--other", type=Path, help="another exported directory, for the order of arms")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--starts", type=int, default=8)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    opened, placement = open_exported(arguments.exported), machine.placement(None)
    arm = Arm("subnet", "ir", arguments.exported, "CPU", properties={"KV_CACHE_PRECISION": "u8"})
    vocabulary = opened.vocabulary
    before = machine.CpuTimes.now([])
    result: dict[str, Any] = {"conditions": conditions(), "case": vars(CASE)}
    result |= {"rounds": arguments.rounds, "starts": arguments.starts}
    result["sleeper"] = sleeping(arguments.rounds)
    result["repeated_prompt"] = repeated(arm, placement.threads, vocabulary)
    result["agreement"] = agreement(arm, placement.threads, vocabulary, arguments.rounds)
    if arguments.other:
        other = Arm("other", "ir", arguments.other, "CPU", properties={"KV_CACHE_PRECISION": "u8"})
        result["order"] = swapped(arm, other, placement, vocabulary, arguments.rounds)
    print(json.dumps(result, indent=1), flush=True)
    itself = against_itself(arm, placement, vocabulary, arguments.rounds, arguments.starts, arguments.runs, opened.config)
    result["against_itself"] = itself
    for metric in ("ttft", "tpot"):
        inside = sum(run[metric]["low"] <= 1 <= run[metric]["high"] for run in itself)
        widest = max(run[metric]["half_width"] for run in itself)
        result[f"{metric}_summary"] = {"intervals_with_1": inside, "runs": len(itself), "widest": widest}
        print(f"{metric}: {inside} of {len(itself)} intervals contain 1; the widest is ±{widest:.1%}")
    result["stolen_by_host"] = machine.others_share(before, machine.CpuTimes.now([]), 2)["stolen"]
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
