"""Kill commands at random moments: no output is lost or partial, and running the command again gives the undisturbed result.

    python benchmarks/fuzz_kills.py --seed 7 --kills 300 --output benchmarks/results/fuzz_kills.json
    python benchmarks/fuzz_kills.py --seed 7 --kill 13                 one kill, its directory kept

Each command runs on a tiny model in a forked child of this process. SIGKILL goes to the child, SIGINT to its group, as Ctrl-C
does. Publishing an output is too short to be hit by chance: `tests/test_output_stopped.py` stops it at each system call.

`compress` runs without timed training steps, latencies and `optimum-cli`, which would take most of its time. Running it again
must not repeat a finished step.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/pipeline")]

from runner import Ran, import_all, main_in, redirect, run_command, run_forked, run_in_jobs  # noqa: E402 - numpy counts threads

PACKAGES = ("lonas-edge", "torch", "transformers", "peft", "safetensors")
PACKAGES += ("openvino", "openvino-genai", "optimum-intel", "lm-eval")

TIME_LIMIT = 600  # seconds of one run
ORPHAN_LIMIT = 20  # seconds in which child processes must end after the command
_VARYING = {"seconds", "peak_rss_bytes", "graph_process_peak_rss_bytes", "date", "answered", "resumed_from_step"}  # in JSON
_TIMED = ("study.log", "search_progression.csv")  # have the time of each evaluation; search.json has the same without it
_TIME = re.compile(r"\b20\d\d-\d\d-\d\d\b|\b(\d+ h )?\d+(\.\d+)? (s|min)\b")  # dates and durations in texts
_NUMBERED = re.compile(r"(_|Model)\d+")  # nodes of an IR, such as Constant_15790: counted over a process
_EXPORT = "export adapter --model base --nncf-config space.json --output out"
_IR = "export adapter --model base --nncf-config space.json --weight-format fp32 --output ir"
_CHECKPOINT = f"{_EXPORT} --stage checkpoint"
_TRAIN = "train --model base --nncf-config space.json --data data.json --output out --rank 8 --alpha 16 --steps 8 "
_TRAIN += "--batch-size 2 --lr 0.01 --template question --device cpu --max-length 64"
_EVAL = "eval ir --datasets datasets --tasks boolq --protocol option-text --output out"
_SPACE = "space --model base --output out.json"
_COMPRESS = "compress base --data sums.json --output out --target weights<=0.95x --weight-format int8_sym --template question "
_COMPRESS += "--draft none --recovery-steps 4 --prompt-len 8"


@dataclass(frozen=True)
class Scenario:
    """A command to kill.

    Attributes:
        arguments: Its command line.
        weight: How often it is drawn.
        old: The command that wrote the output before it; None without one.
        output: Its output.
        reads: The inputs to copy.
    """

    arguments: list[str]
    weight: int
    old: list[str] | None = None
    output: str = "out"
    reads: tuple[str, ...] = ("base", "adapter", "space.json")

    @property
    def again(self) -> list[str]:
        """The command line that repeats it over any output; `compress` continues."""
        overwrites = "--overwrite" in self.arguments or self.arguments[0] == "compress"
        return self.arguments if overwrites else [*self.arguments, "--overwrite"]


def _pair(line: str, weights: tuple[int, int], more: str, **options: Any) -> tuple[Scenario, Scenario]:
    """A command without and with `--overwrite`; `more` are options of the command that wrote the old output."""
    replacing = Scenario(f"{line} --overwrite".split(), weights[1], f"{line} {more}".split(), **options)
    return Scenario(line.split(), weights[0], **options), replacing


_SCENARIOS = (
    *_pair(_EXPORT, (7, 7), "--subnet minimal"),
    *_pair(_CHECKPOINT, (3, 7), "--subnet minimal"),
    *_pair(_TRAIN, (8, 4), "--seed 7 --steps 1", reads=("base", "space.json", "data.json")),
    *_pair(_EVAL, (6, 3), "--limit 1", reads=("ir", "datasets")),
    *_pair(_SPACE, (4, 4), "--ranks 8", output="out.json", reads=("base",)),
    Scenario(_COMPRESS.split(), 12, reads=("base", "sums.json")),
)
_SHOWN = ("compress", "export", "eval", "train", "space", "--stage", "checkpoint", "--overwrite")
SCENARIOS = {" ".join(part for part in each.arguments if part in _SHOWN): each for each in _SCENARIOS}


@dataclass
class Kill:
    """One kill and its consequences."""

    number: int
    command: str
    signal: str
    moment: float
    state: str = ""
    code: int | None = None
    resumed: bool = False
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reference:
    """An undisturbed run: the state of its output before and after, and its seconds."""

    before: str
    after: str
    seconds: float


class Kills:
    """Kills commands, one after another."""

    def __init__(self, originals: Path, work: Path, seed: int):
        """Set up; nothing runs yet."""
        self.home, self.work, self.seed = originals, work, seed
        self._references: dict[str, Reference] = {}

    def _case(self, name: str, scenario: Scenario) -> Path:
        """Make a directory with the inputs of a command, and the old output."""
        case = self.work / name
        shutil.rmtree(case, ignore_errors=True)
        for folder in ("in", "tmp", "home", "logs", "cache"):
            (case / folder).mkdir(parents=True)
        for read in scenario.reads:
            _copy(self.home / read, case / "in" / read)
        if scenario.old:
            kept = self.work / "old" / re.sub(r"\W+", "-", " ".join(scenario.old))
            if not kept.exists():
                _check(run_command(scenario.old, case, TIME_LIMIT), scenario.old)
                kept.parent.mkdir(exist_ok=True)
                shutil.move(case / "in" / scenario.output, kept)
                shutil.rmtree(case / "cache")
                (case / "cache").mkdir()
            _copy(kept, case / "in" / scenario.output)
        return case

    def reference(self, command: str) -> Reference:
        """Run a command undisturbed. The second of two runs is timed, and must give the same output."""
        if command not in self._references:
            scenario, runs = SCENARIOS[command], []
            for _ in range(2):
                case = self._case("reference", scenario)
                before = state_of(case / "in" / scenario.output)
                ran = run_command(scenario.arguments, case, TIME_LIMIT)
                _check(ran, scenario.arguments)
                runs.append(Reference(before, state_of(case / "in" / scenario.output), ran.seconds))
            if runs[0].after != runs[-1].after:
                raise RuntimeError(f"{command}: two undisturbed runs differ: {_difference(runs[0].after, runs[-1].after)}")
            self._references[command] = runs[-1]
        return self._references[command]

    def run(self, number: int, names: list[str], keep: bool = False) -> Kill:
        """Run one kill; command, signal and moment are drawn from the seed and the number."""
        draw = random.Random(f"{self.seed}/{number}")
        command = draw.choices(names, [SCENARIOS[name].weight for name in names])[0]
        how, share = draw.choice((signal.SIGKILL, signal.SIGINT)), draw.random()
        scenario, reference = SCENARIOS[command], self.reference(command)
        kill = Kill(number, command, how.name, round(share * reference.seconds, 3))
        case = self._case(str(number), scenario)
        expected = {path.name for path in (case / "in").iterdir()} | {scenario.output}
        kill.code, orphans = killed(scenario.arguments, case, kill.moment, how)
        self._check_state(kill, case, scenario, reference, orphans)
        self._run_again(kill, case, scenario, reference)
        if others := {path.name for path in (case / "in").iterdir()} ^ expected:
            kill.failures.append(f"left behind or removed: {sorted(others)}")
        if not keep and not kill.failures:
            shutil.rmtree(case)
        return kill

    def _check_state(self, kill: Kill, case: Path, scenario: Scenario, reference: Reference, orphans: list[str]) -> None:
        """After a kill the output is the old one or the complete new one."""
        state = state_of(case / "in" / scenario.output)
        if state == "absent" and (aside := case / "in" / f".{scenario.output}.old").exists():  # between the two renames
            state = state_of(aside).replace(f"{aside.name}/", f"{scenario.output}/")
        names = {reference.before: "absent" if reference.before == "absent" else "old", reference.after: "new"}
        kill.state = names.get(state, "partial")
        allowed = (0, 1 if kill.signal == "SIGINT" else -signal.SIGKILL)
        checks = {
            f"neither the old output nor the new one: {state[:300]}": kill.state == "partial",
            "exit code 0 without the new output": kill.code == 0 and kill.state != "new",
            f"exit code {kill.code}": kill.code not in allowed,
            _traceback(case): bool(_traceback(case)),
            f"processes still run: {orphans}": bool(orphans),
        }
        kill.failures += [message for message, failed in checks.items() if failed]

    def _run_again(self, kill: Kill, case: Path, scenario: Scenario, reference: Reference) -> None:
        """Run the command again, with --resume if it is a training."""
        arguments, finished = scenario.again, _finished_steps(case / "in" / f"{scenario.output}.partial")
        if arguments[0] == "train" and kill.state != "new":
            ran = run_command([*arguments, "--resume"], case, TIME_LIMIT)
            kill.resumed = ran.code == 0
            if not kill.resumed and "no unfinished run to resume" not in ran.err:
                kill.failures.append(f"--resume: {ran.err[-300:]}")
        if not kill.resumed:
            ran = run_command(arguments, case, TIME_LIMIT)
        if finished:
            kill.resumed, seconds = True, finished | _finished_steps(case / "in" / scenario.output)
            kill.failures += [f"{name}: was repeated" for name in finished if seconds[name] != finished[name]]
        state = state_of(case / "in" / scenario.output)
        if ran.code or _traceback(case):
            kill.failures.append(f"again: exit code {ran.code}: {ran.err[-500:]}")
        elif state != reference.after:
            kill.failures.append(f"again, another result: {_difference(state, reference.after)}")


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)


def _check(ran: Ran, arguments: list[str]) -> None:
    if ran.code:
        raise RuntimeError(f"{' '.join(arguments)}: exit code {ran.code}:\n{ran.out[-500:]}\n{ran.err[-2000:]}")


def _traceback(case: Path) -> str:
    log = case / "logs/err"  # missing if the kill came first
    text = log.read_text(errors="replace") if log.exists() else ""
    return f"a traceback: {text.strip().splitlines()[-1][:300]}" if "Traceback (most recent call last)" in text else ""


def _difference(first: str, second: str) -> str:
    return "; ".join(sorted({*first.splitlines()} ^ {*second.splitlines()}))[:400]


def _finished_steps(folder: Path) -> dict[str, float]:
    """The seconds of the steps of `compress` that are finished for certain: of all that were started but the last."""
    record = folder / "steps/steps.json"
    states = json.loads(record.read_text())["states"] if record.exists() else {}
    return {name: states[name]["seconds"] for name in list(states)[:-1]}


def state_of(output: Path) -> str:
    """Describe an output for comparison: one line with the hash of each file, without figures that differ each time."""
    if not os.path.lexists(output):
        return "absent"
    paths = sorted(output.rglob("*")) if output.is_dir() else [output]
    files = [path for path in paths if path.is_file() and path.name not in _TIMED]
    return "\n".join(f"{path.relative_to(output.parent)} {_hash(path, output.parent)}" for path in files)


def _hash(path: Path, folder: Path) -> str:
    """Hash a file of an output in a folder, whose own path does not count."""
    content = path.read_bytes()
    if path.suffix in (".json", ".md", ".csv", ".html", ".xml"):
        text = content.decode().replace(str(folder), "")
        if path.suffix == ".json":
            text = json.dumps(_without_varying(json.loads(text)))
        content = (_NUMBERED.sub(r"\1", text) if path.suffix == ".xml" else _TIME.sub("a time", text)).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _without_varying(value: Any) -> Any:
    """A JSON value without what differs each time."""
    if isinstance(value, dict):
        return {name: _without_varying(each) for name, each in value.items() if name not in _VARYING}
    return [_without_varying(each) for each in value] if isinstance(value, list) else value


def killed(arguments: list[str], case: Path, moment: float, how: signal.Signals) -> tuple[int, list[str]]:
    """Run a command and kill it; return its exit code, and the child processes that did not end with it."""
    start = time.monotonic()
    child = os.fork()
    if not child:
        try:
            _run(arguments, case)
        finally:
            os._exit(1)
    with suppress(OSError):  # the child does the same
        os.setpgid(child, child)
    time.sleep(max(0.0, start + moment - time.monotonic()))
    ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        (os.killpg if how == signal.SIGINT else os.kill)(child, how)
        status = _wait(child)
    return os.waitstatus_to_exitcode(status), _orphans(child)


def _run(arguments: list[str], case: Path) -> None:
    """Run in the child as a shell does, in a process group of its own."""
    code = 1
    try:
        os.setpgid(0, 0)
        redirect(case / "logs/out", case / "logs/err")
        os.chdir(case / "in")
        main_in(case, arguments)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:  # before or after the command
        pass
    finally:
        with suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def _wait(child: int) -> int:
    deadline = time.monotonic() + TIME_LIMIT
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _orphans(group: int) -> list[str]:
    """Names of the processes of a group that do not end in time; they are killed."""
    deadline = time.monotonic() + ORPHAN_LIMIT
    while time.monotonic() < deadline:
        if not (left := _members(group)):
            return []
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    return left


def _members(group: int) -> list[str]:
    names = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            name, rest = (entry / "stat").read_text().rsplit(")", 1) if entry.name.isdecimal() else ("", "")
            state, _, of = rest.split()[:3]
            if int(of) == group and state != "Z":
                names.append(name.partition("(")[2])
    return names


def summary(kills: list[Kill], seed: int, seconds: float) -> dict[str, Any]:
    """Count the kills, and list those with failures."""
    from lonas_edge.bench.machine import describe
    from lonas_edge.versions import versions

    def counts(of: list[Kill]) -> dict[str, int]:
        counter = Counter({"kills": len(of), "failures": sum(bool(kill.failures) for kill in of)})
        counter.update(kill.signal for kill in of)
        counter.update(f"output {kill.state}" for kill in of)
        counter.update("done before the kill" for kill in of if kill.code == 0)
        counter.update("resumed" for kill in of if kill.resumed)
        return dict(counter)

    commands = sorted({kill.command for kill in kills})
    return {
        "seed": seed,
        "counts": counts(kills),
        "by_command": {name: counts([kill for kill in kills if kill.command == name]) for name in commands},
        "failures": [asdict(kill) for kill in kills if kill.failures],
        "seconds": round(seconds, 1),
        "versions": versions(PACKAGES),
        "processor": describe("CPU")["processor"],
    }


def make_inputs(home: Path) -> None:
    """Write the inputs of all commands: a tiny model, its adapter, search space, data, an export and a task."""
    from pipeline_runs import write_data
    from tiny_models import TinyModels

    models = TinyModels(home.parent / "tiny")
    source = models.source("llama")
    for name in ("base", "adapter"):
        shutil.copytree(getattr(source, name), home / name)
    config = json.loads((home / "base/config.json").read_text()) | {"max_position_embeddings": 1024}
    (home / "base/config.json").write_text(json.dumps(config))
    shutil.copy(source.space, home / "space.json")
    sums = [(a, b) for a in range(2) for b in range(4)]
    examples = [{"instruction": f"What is {a} plus {b}?", "input": "", "output": str(a + b)} for a, b in sums]
    (home / "data.json").write_text(json.dumps(examples))
    write_data(home / "sums.json")
    shutil.copytree(ROOT / "tests/evaluate/data/boolq", home / "datasets/boolq")


def shorten_compress(home: Path) -> None:
    """Replace what takes most of the time of `compress`; import what draws its charts, which looks for fonts once."""
    import matplotlib.font_manager  # noqa: F401
    import pytest
    from pipeline_runs import make_quick

    from lonas_edge.output import OutputDirectory
    from lonas_edge.pipeline import baselines, run

    def copy_baseline(command: Any, _guards: Any) -> None:
        with OutputDirectory(command.paths[""]).open() as folder:
            shutil.copytree(home / "ir", folder, dirs_exist_ok=True)

    patch, write_report = pytest.MonkeyPatch(), run.write_report
    make_quick(patch)
    patch.setattr(run, "write_report", write_report)
    patch.setattr(baselines, "run_optimum", copy_baseline)


def prepared(work: Path) -> Path:
    """The directory of the inputs, made if it is not there."""
    home = work / "originals/llama"
    if not (home / "in/ir").exists():
        (home / "in").mkdir(parents=True)
        (home / "logs").mkdir()
        _check(run_forked(lambda: make_inputs(home / "in"), home, home / "logs", TIME_LIMIT), ["inputs"])
        export = _IR.split()
        _check(run_command(export, home, TIME_LIMIT), export)
    return home / "in"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="number of the first kill")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="commands that run at a time")
    parser.add_argument("--kill", type=int, help="run this kill alone and keep its directory")
    parser.add_argument("--only", help="commands, comma-separated")
    parser.add_argument("--work", help="directory for the files; the original ones are reused; default: a temporary one")
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args()
    start = time.monotonic()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells without job control let background jobs ignore it
    import_all()
    work = Path(options.work or tempfile.mkdtemp(prefix="fuzz-kills-")).resolve()
    originals = prepared(work)
    shorten_compress(originals)
    names = options.only.split(",") if options.only else list(SCENARIOS)
    numbers = (
        range(options.first, options.first + options.kills) if options.kill is None else range(options.kill, options.kill + 1)
    )

    def run(folder: Path, numbers: Sequence[int]) -> list[Kill]:
        runs, kills = Kills(originals, folder, options.seed), []
        for number in numbers:
            kills.append(runs.run(number, names, keep=options.kill is not None))
            if kills[-1].failures or options.kill is not None:
                print(kills[-1], flush=True)
        return kills

    kills = run_in_jobs(numbers, min(options.jobs, len(numbers)), work, run)
    result = summary(kills, options.seed, time.monotonic() - start)
    for name, counts in [*result["by_command"].items(), ("all", result["counts"])]:
        print(f"{name:40} {', '.join(f'{count} {what}' for what, count in counts.items())}")
    print(f"seed {options.seed}, {result['seconds']} s, in {work}")
    if options.output:
        Path(options.output).write_text(json.dumps(result, indent=1) + "\n")
    raise SystemExit(bool(result["failures"]))


if __name__ == "__main__":
    main()
