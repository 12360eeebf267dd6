"""Commands killed at random moments: nothing is lost or half, and what follows gives what would have been without the kill.

    python benchmarks/doors_kills.py --seed 7 --kills 300 --output benchmarks/results/doors_kills.json
    python benchmarks/doors_kills.py --seed 7 --kill 13                 one kill alone, its directory kept

Each command runs on a tiny model in a forked child of this process, which has everything imported; SIGKILL goes to the child,
SIGINT to its group, as Ctrl-C does. Publishing is too short to be met: `tests/test_output_stopped.py` stops it at each call.
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
import xml.etree.ElementTree as ET
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from doors import PACKAGES, _processor  # sets the environment of the libraries, and where the tests' modules are
from runner import Ran, import_all, run_command

PATIENCE = 600  # seconds of one run
ORPHANS = 20  # seconds that processes may take to see that the command is dead
_FIGURES = re.compile(
    r'("(?:seconds|peak_rss_bytes|graph_process_peak_rss_bytes|date|asked|resumed_from_step)": )[^,\n]+'  # differ each time
)
_DATE = re.compile(r"\b20\d\d-\d\d-\d\d\b")
_SOURCE = ["adapter", "--model", "base", "--nncf-config", "space.json"]
_EXPORT = ["export", *_SOURCE, "--output", "out"]
_TRAIN = ["train", "--model", "base", "--nncf-config", "space.json", "--data", "data.json", "--output", "out", "--rank", "8"]
_TRAIN += ["--alpha", "16", "--steps", "8", "--save-steps", "2", "--log-steps", "1", "--batch-size", "2", "--lr", "0.01"]
_TRAIN += ["--prompt", "question", "--device", "cpu", "--max-length", "64"]
_EVAL = ["eval", "ir", "--datasets", "datasets", "--tasks", "boolq", "--protocol", "option-text", "--batch-size", "1"]
_TUNE = ["bench", "ir", "--tune", "--rounds", "2", "--starts", "1", "--warmup", "0", "--prompt-len", "4", "--new-tokens", "2"]


@dataclass(frozen=True)
class Scenario:
    """A command that is killed.

    Attributes:
        arguments: Its command line.
        weight: How often it is drawn.
        old: The command that made what is there before; None where nothing is.
        output: What it writes.
        reads: What is copied for it.
    """

    arguments: list[str]
    weight: int
    old: list[str] | None = None
    output: str = "out"
    reads: tuple[str, ...] = ("base", "adapter", "space.json")

    @property
    def again(self) -> list[str]:
        """The command once more, whatever is there."""
        return [*self.arguments, *(() if self.arguments[0] == "bench" or "--overwrite" in self.arguments else ["--overwrite"])]


_TRAINS = ("base", "space.json", "data.json")
SCENARIOS = {
    "export": Scenario(_EXPORT, 7),
    "export --overwrite": Scenario([*_EXPORT, "--overwrite"], 7, [*_EXPORT, "--subnet", "minimal"]),
    "export --stage checkpoint": Scenario([*_EXPORT, "--stage", "checkpoint"], 3),
    "export --stage checkpoint --overwrite": Scenario(
        [*_EXPORT, "--stage", "checkpoint", "--overwrite"], 7, [*_EXPORT, "--stage", "checkpoint", "--subnet", "minimal"]
    ),
    "train": Scenario(_TRAIN, 8, reads=_TRAINS),
    "train --overwrite": Scenario([*_TRAIN, "--overwrite"], 4, [*_TRAIN, "--seed", "7", "--steps", "1"], reads=_TRAINS),
    "eval": Scenario([*_EVAL, "--output", "out"], 6, reads=("ir", "datasets")),
    "eval --overwrite": Scenario(
        [*_EVAL, "--output", "out", "--overwrite"], 3, [*_EVAL, "--output", "out", "--limit", "1"], reads=("ir", "datasets")
    ),
    "space": Scenario(["space", "--model", "base", "--output", "out.json"], 4, output="out.json", reads=("base",)),
    "space --overwrite": Scenario(
        ["space", "--model", "base", "--output", "out.json", "--overwrite"],
        4,
        ["space", "--model", "base", "--output", "out.json", "--ranks", "8"],
        "out.json",
        ("base",),
    ),
    "bench --tune": Scenario(_TUNE, 1, output="ir", reads=("ir",)),
}


@dataclass
class Kill:
    """One kill, and what came of it."""

    number: int
    command: str
    signal: str
    moment: float
    state: str = ""
    code: int | None = None
    resumed: bool = False
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reference:
    """A command that nobody disturbed: what was there before, what is there after, and the seconds it took."""

    before: str
    after: str
    seconds: float


class Campaign:
    """Kills commands, one after another."""

    def __init__(self, world: Path, work: Path, seed: int):
        """Nothing is run yet; `world` has the undamaged files, `work` is for the cases."""
        self.home, self.work, self.seed = world / "llama", work, seed
        self._references: dict[str, Reference] = {}

    def _case(self, name: str, scenario: Scenario) -> Path:
        """A fresh directory with the inputs of a command, and what is there before it."""
        case = self.work / name
        shutil.rmtree(case, ignore_errors=True)
        for folder in ("in", "tmp", "home", "logs", "cache"):
            (case / folder).mkdir(parents=True)
        for read in scenario.reads:
            copy = shutil.copytree if (self.home / read).is_dir() else shutil.copy
            copy(self.home / read, case / "in" / read)
        if scenario.arguments[0] == "bench":
            (case / "in/ir/lonas_edge_runtime.json").unlink()  # as it was exported
        if scenario.old:
            kept = self.work / "old" / re.sub(r"\W+", "-", " ".join(scenario.old))
            if not kept.exists():
                _well(run_command(scenario.old, case, PATIENCE), scenario.old)
                kept.parent.mkdir(exist_ok=True)
                shutil.move(case / "in" / scenario.output, kept)
                shutil.rmtree(case / "cache")
                (case / "cache").mkdir()
            copy = shutil.copytree if kept.is_dir() else shutil.copy
            copy(kept, case / "in" / scenario.output)
        return case

    def reference(self, command: str) -> Reference:
        """What a command gives undisturbed; the second of two runs is timed and must give what the first gave."""
        if command not in self._references:
            scenario, found = SCENARIOS[command], []
            for _ in range(1 if command == "bench --tune" else 2):
                case = self._case("reference", scenario)
                before = state_of(case / "in" / scenario.output)
                ran = run_command(scenario.arguments, case, PATIENCE)
                _well(ran, scenario.arguments)
                found.append(Reference(before, state_of(case / "in" / scenario.output), ran.seconds))
            if found[0].after != found[-1].after:
                raise RuntimeError(f"{command}: two undisturbed runs differ:\n{found[0].after}\n{found[-1].after}")
            self._references[command] = found[-1]
        return self._references[command]

    def run(self, number: int, names: list[str], keep: bool = False) -> Kill:
        """One kill, its command, signal and moment drawn from the seed and its number."""
        draw = random.Random(f"{self.seed}/{number}")
        command = draw.choices(names, [SCENARIOS[name].weight for name in names])[0]
        how, share = draw.choice((signal.SIGKILL, signal.SIGINT)), draw.random()
        scenario, reference = SCENARIOS[command], self.reference(command)
        kill = Kill(number, command, how.name, round(share * reference.seconds, 3))
        case = self._case(str(number), scenario)
        there = sorted(path.name for path in (case / "in").iterdir())
        kill.code, orphans = killed(scenario.arguments, case, kill.moment, how)
        self._check_state(kill, case, scenario, reference, orphans)
        self._go_on(kill, case, scenario, reference)
        left = sorted(path.name for path in (case / "in").iterdir())
        if left != sorted({*there, scenario.output}):
            kill.faults.append(
                f"left behind: {sorted({*left} - {*there, scenario.output})}, gone: {sorted({*there} - {*left})}"
            )
        if not keep and not kill.faults:
            shutil.rmtree(case)
        return kill

    def _check_state(self, kill: Kill, case: Path, scenario: Scenario, reference: Reference, orphans: list[str]) -> None:
        """What the kill left at the output's place: what was there, or the new one, whole."""
        found = state_of(case / "in" / scenario.output)
        states = {reference.before: "absent" if reference.before == "absent" else "old", reference.after: "new"}
        kill.state = states.get(found, "half")
        if kill.state == "half":
            kill.faults.append(f"neither the old output nor the new one: {found[:300]}")
        if kill.code == 0 and kill.state != "new":
            kill.faults.append("said that it was done")
        if kill.code not in (0, 1 if kill.signal == "SIGINT" else -signal.SIGKILL):
            kill.faults.append(f"exit code {kill.code}")
        if error := _traceback(case):
            kill.faults.append(error)
        if orphans:
            kill.faults.append(f"processes that live on: {orphans}")

    def _go_on(self, kill: Kill, case: Path, scenario: Scenario, reference: Reference) -> None:
        """The command once more: with --resume where a training was left."""
        arguments = scenario.again
        if (case / "in/out.training").exists():
            ran = run_command([*arguments, "--resume"], case, PATIENCE)
            kill.resumed = ran.code == 0
            if not kill.resumed and "--overwrite" not in ran.err:  # killed before it could be: which way is left is said
                kill.faults.append(f"--resume: {ran.err[-300:]}")
        if not kill.resumed:
            ran = run_command(arguments, case, PATIENCE)
        if ran.code or _traceback(case):
            kill.faults.append(f"once more: exit code {ran.code}: {ran.err[-500:]}")
        elif state_of(case / "in" / scenario.output) != reference.after:
            kill.faults.append(
                f"once more, not the same: {_difference(state_of(case / 'in' / scenario.output), reference.after)}"
            )


def _well(ran: Ran, arguments: list[str]) -> None:
    if ran.code:
        raise RuntimeError(f"{' '.join(arguments)}: exit code {ran.code}:\n{ran.out[-500:]}\n{ran.err[-2000:]}")


def _traceback(case: Path) -> str:
    err = case / "logs/err"  # not there where the kill came first
    said = err.read_text(errors="replace") if err.exists() else ""
    return f"a traceback: {said.strip().splitlines()[-1][:300]}" if "Traceback (most recent call last)" in said else ""


def _difference(one: str, other: str) -> str:
    return "; ".join(sorted({*one.splitlines()} ^ {*other.splitlines()}))[:400]


def state_of(output: Path) -> str:
    """What is at an output's place, to be compared: a line a file, with its hash; what differs each time is left out."""
    if not os.path.lexists(output):
        return "absent"
    paths = sorted(output.rglob("*")) if output.is_dir() else [output]
    tuned = output.name == "ir"  # which properties are the fastest is chance: the model must be the same
    lines = [f"{path.relative_to(output.parent)} {_hash(path, tuned)}" for path in paths if path.is_file()]
    return "\n".join(line for line in lines if not tuned or not re.search(r"runtime\.json|README|\.partial", line))


def _hash(path: Path, tuned: bool) -> str:
    content = path.read_bytes()
    if path.suffix in (".json", ".md", ".csv"):
        content = _DATE.sub("a day", _FIGURES.sub(r"\g<1>1", content.decode())).encode()  # a campaign may pass midnight
    if tuned and path.name == "openvino_model.xml":
        content = _without_options(content)
    return hashlib.sha256(content).hexdigest()[:16]


def _without_options(content: bytes) -> bytes:
    """An IR's .xml without the run-time options that --tune sets in it."""
    try:
        tree = ET.fromstring(content)
    except ET.ParseError as error:
        return f"damaged: {error}".encode()
    info = tree.find("rt_info")
    for options in [] if info is None else info.findall("runtime_options"):
        info.remove(options)
    return ET.canonicalize(ET.tostring(tree, encoding="unicode"), strip_text=True).encode()


def killed(arguments: list[str], case: Path, moment: float, how: signal.Signals) -> tuple[int, list[str]]:
    """Run a command and kill it; its exit code, and the processes it started that did not end with it."""
    start = time.monotonic()
    child = os.fork()
    if not child:
        try:
            _command(arguments, case)
        finally:
            os._exit(1)
    with suppress(OSError):  # the child does it, too: whoever comes first
        os.setpgid(child, child)
    time.sleep(max(0.0, start + moment - time.monotonic()))
    ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        (os.killpg if how == signal.SIGINT else os.kill)(child, how)
        status = _wait(child)
    return os.waitstatus_to_exitcode(status), _orphans(child)


def _command(arguments: list[str], case: Path) -> None:
    """The child: as a shell starts it, in a group of its own."""
    code = 1
    try:
        os.setpgid(0, 0)
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(case / "logs" / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ |= {"HOME": str(case / "home"), "TMPDIR": str(case / "tmp"), "XDG_CACHE_HOME": str(case / "cache")}
        tempfile.tempdir = None
        os.chdir(case / "in")
        sys.argv = ["lonas-edge", *arguments]
        from lonas_edge.cli import main

        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:  # before the command was there, or after
        pass
    finally:
        with suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def _wait(child: int) -> int:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _orphans(group: int) -> list[str]:
    """Processes of a group that are still there after a while, by name; they are ended."""
    deadline = time.monotonic() + ORPHANS
    while time.monotonic() < deadline:
        if not (left := _members(group)):
            return []
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    return left


def _members(group: int) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            name, rest = (entry / "stat").read_text().rsplit(")", 1) if entry.name.isdecimal() else ("", "")
            state, _, of = rest.split()[:3]
            if int(of) == group and state != "Z":
                found.append(name.partition("(")[2])
    return found


def summary(kills: list[Kill], seed: int, seconds: float) -> dict[str, Any]:
    """The counts, and every kill that showed a fault."""
    from lonas_edge.versions import versions

    def counts(of: list[Kill]) -> dict[str, int]:
        found = Counter({"kills": len(of), "faults": sum(bool(kill.faults) for kill in of)})
        found.update(kill.signal for kill in of)
        found.update(f"output {kill.state}" for kill in of)
        found.update("done before the kill" for kill in of if kill.code == 0)
        found.update("resumed" for kill in of if kill.resumed)
        return dict(found)

    commands = sorted({kill.command for kill in kills})
    return {
        "seed": seed,
        "counts": counts(kills),
        "by_command": {name: counts([kill for kill in kills if kill.command == name]) for name in commands},
        "faults": [asdict(kill) for kill in kills if kill.faults],
        "seconds": round(seconds, 1),
        "versions": versions(PACKAGES),
        "processor": _processor(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="number of the first kill")
    parser.add_argument("--kill", type=int, help="this kill alone, its directory kept")
    parser.add_argument("--only", help="commands, separated by commas")
    parser.add_argument("--work", help="directory for the files; the undamaged ones are used again. Default: a temporary one")
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args()
    start = time.monotonic()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell without job control has its background jobs ignore it
    import_all()
    from world import make_world

    work = Path(options.work or tempfile.mkdtemp(prefix="doors-kills-")).resolve()
    world = work / "world"
    if not (world / "llama/cache").exists():
        print(f"making the undamaged files in {world}", file=sys.stderr)
        shutil.rmtree(world, ignore_errors=True)
        world.mkdir(parents=True)
        make_world(world)
    campaign = Campaign(world, work, options.seed)
    names = options.only.split(",") if options.only else list(SCENARIOS)
    numbers = range(options.first, options.first + options.kills) if options.kill is None else [options.kill]
    kills = []
    for number in numbers:
        kills.append(campaign.run(number, names, keep=options.kill is not None))
        if kills[-1].faults or options.kill is not None:
            print(kills[-1], flush=True)
    found = summary(kills, options.seed, time.monotonic() - start)
    for name, counts in [*found["by_command"].items(), ("all", found["counts"])]:
        print(f"{name:40} {', '.join(f'{count} {what}' for what, count in counts.items())}")
    print(f"seed {options.seed}, {found['seconds']} s, in {work}")
    if options.output:
        Path(options.output).write_text(json.dumps(found, indent=1) + "\n")
    raise SystemExit(bool(found["faults"]))


if __name__ == "__main__":
    main()
