"""Rounds of the campaign: a command is killed, starved of disk, doubled or given a changed file."""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import mutants
import ray_rounds
from forked import UNCAUGHT, Child, Ended, run
from worlds import BASE, CASES, Case, differences, make_world, remove, tree, write_sources

KILL, MUTANT, FULL, PAIR, RAY = "kill", "mutant", "full disk", "pair", "on Ray"
IDENTICAL, REFUSED, ANSWERED, TOLD = "identical", "refused", "another input", "told"
LOST, SILENT, TRACEBACK, HANG, CRASH, LEFT, MESSAGE = (
    "lost", "silent change", "traceback", "hang", "crash", "leftover", "not one message",
)  # fmt: skip
FAULTS = (LOST, SILENT, TRACEBACK, HANG, CRASH, LEFT, MESSAGE)
MOST_SECONDS = 120.0
MEMORY = 24 << 30
"""Address space that a command may take; a number in a file must not fill the machine."""


@dataclass
class Round:
    """One round and what came of it.

    Attributes
    ----------
    kind, case : str
    number : int
        With the seed it fixes everything that is drawn.
    done : list of str
        What was done to the command.
    verdict : str
    why : str
    """

    kind: str
    case: str
    number: int
    done: list[str] = field(default_factory=list)
    verdict: str = IDENTICAL
    why: str = ""
    kills: int = 0
    seconds: float = 0.0


class Campaign:
    """Runs rounds in a directory.

    Parameters
    ----------
    home : Path
        Where base, worlds and failures go.
    seed : int
    cases : list of Case
    """

    def __init__(self, home: Path, seed: int, cases: list[Case] | None = None) -> None:
        self.home, self.seed = home, seed
        self.base, self.failures = home / "base", home / "failures"
        self.cases = {case.name: case for case in cases or CASES}
        self.cluster = 0
        self.wanted: dict[str, dict[str, str]] = {}
        self.said: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.rounds: list[Round] = []
        self.failures.mkdir(parents=True, exist_ok=True)

    def make_base(self) -> None:
        """Make the inputs of all commands, by the commands; a base that is there already is taken."""
        known = self.home / "imported"
        if (self.home / "made").exists():
            self._import(known)
            return
        shutil.rmtree(self.base, ignore_errors=True)
        write_sources(self.base)
        for words in BASE:
            env = {"CAMPAIGN_IMPORTED": str(known)}
            ended = run(words.split(), self.base, self.home / "log-base", 600, env=env)
            if ended.status != 0:
                raise RuntimeError(f"{words}: {ended.status}\n{ended.err}")
            self._import(known)
        (self.home / "made").touch()

    @staticmethod
    def _import(known: Path) -> None:
        """Import what children had to import, so that the next need not."""
        for name in known.read_text().splitlines():
            with suppress(Exception):
                importlib.import_module(name)
        gc.freeze()  # what is imported stays: no child looks for garbage in it

    def world(self, case: Case) -> Path:
        """Where a case runs."""
        return self.home / "worlds" / case.name.replace(" ", "-").replace(",", "")

    def begin(self, case: Case) -> Path:
        """Make its world anew."""
        world = self.world(case)
        if "out" in case.needs and not (self.base / "out").exists():
            whole = next(c for c in CASES if c.words == case.words and "out" not in c.needs)
            make_world(whole, self.base, world)
            self._whole(whole, world)
            shutil.move(world / "out", self.base / "out")
        make_world(case, self.base, world)
        return world

    def golden(self, case: Case) -> None:
        """Run a case undisturbed, twice: what every round must end with, and how long it takes."""
        if case.name in self.wanted:
            return
        for attempt in range(2):
            world = self.begin(case)
            ended = self._wait(self._start(case, world, case.local))
            if ended.status not in case.ends:
                raise RuntimeError(f"{case.name}: {ended.status}\n{ended.err}")
            found = tree(world)
            if attempt:
                other, left = differences(found, self.wanted[case.name])
                if other or left:
                    raise RuntimeError(f"{case.name}: two undisturbed runs differ: {other + left}")
            self.wanted[case.name], self.said[case.name] = found, ended.out
            self.seconds[case.name] = ended.seconds

    def _start(self, case: Case, world: Path, words: str = "", limits=None) -> list[Child]:
        """Start the processes of a command."""
        beside, words = bool(words), (words or case.words).replace("{world}", str(world))
        env: dict[str, str] = {}
        if case.processes > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        children = []
        for rank in range(case.processes):
            if case.processes > 1:
                env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(case.processes)}
            log = self.home / f"log-{len(children)}{'-beside' if beside else ''}"
            all_limits = {resource.RLIMIT_AS: MEMORY, **(limits or {})}
            children.append(Child(words.split(), world, log, all_limits, dict(env)))
        return children

    def _wait(self, children: list[Child]) -> Ended:
        """Wait for all; as ``torchrun`` does, end the others when one has failed."""
        deadline = time.monotonic() + MOST_SECONDS
        ended: Ended | None = None
        open_ = list(children)
        while open_ and time.monotonic() < deadline:
            for child in open_:
                if child.ended_within(0.005 if len(open_) > 1 else deadline - time.monotonic()):
                    one = child.wait(0)
                    open_.remove(child)
                    if one.status != 0 and ended is None:
                        ended = one
                        for other in open_:
                            if not other.ended_within(5):
                                other.kill(signal.SIGTERM)
                    break
        rest = [child.wait(0) for child in children]
        worst = next((e for e in rest if e.hung), ended or rest[0])
        return replace(worst, err="".join(e.err for e in rest))

    def _whole(self, case: Case, world: Path) -> Ended:
        return self._wait(self._start(case, world))

    # --- the rounds

    def rng(self, kind: str, number: int) -> random.Random:
        """What draws a round."""
        return random.Random(f"{self.seed} {kind} {number}")

    def play(self, kind: str, number: int, case: Case | None = None) -> Round:
        """Play one round; a fault keeps its world."""
        rng = self.rng(kind, number)
        drawn = self.draw(kind, rng)  # in a replay, too: what follows depends on it
        case = case or drawn
        self.golden(case)
        done = Round(kind, case.name, number)
        begun = time.monotonic()
        play = {KILL: self._kill, MUTANT: self._mutant, FULL: self._full, PAIR: self._pair, RAY: self._ray}
        play[kind](case, rng, done)
        done.seconds = time.monotonic() - begun
        self.rounds.append(done)
        with open(self.home / "rounds.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(done)) + "\n")
        if done.verdict in FAULTS:
            self._keep(case, done)
        return done

    def fits(self, kind: str) -> list[Case]:
        """The cases of a kind of round."""
        if kind == RAY:
            return ray_rounds.ON_RAY
        fit = {
            KILL: lambda c: c.kills,
            MUTANT: lambda c: c.free or c.bound,
            FULL: lambda c: c.full,
            PAIR: lambda c: c.pairs,
        }[kind]
        return [case for case in self.cases.values() if fit(case)]

    def draw(self, kind: str, rng: random.Random) -> Case:
        """Draw a case, the cheap ones more often."""
        cases = self.fits(kind)
        cost = [self.seconds.get(case.name, 1.0) + 0.1 for case in cases]
        return rng.choices(cases, [1 / c for c in cost])[0]

    def _keep(self, case: Case, done: Round) -> None:
        place = self.failures / f"{done.kind.replace(' ', '-')}-{done.number}"
        remove(place)
        place.mkdir()
        shutil.copytree(self.world(case), place / "world", symlinks=True, dirs_exist_ok=True)
        for log in self.home.glob("log-*"):
            shutil.copy(log, place)
        (place / "round.json").write_text(json.dumps({**asdict(done), "seed": self.seed}, indent=2))

    def _end(self, case: Case, world: Path, done: Round) -> None:
        """Run the same command to its end: the files must be those of a run never disturbed."""
        self._judge_whole(case, self._whole(case, world), tree(world), done)

    def _judge_whole(self, case: Case, ended: Ended, found: dict[str, str], done: Round) -> None:
        if fault := fault_of(ended):
            done.verdict, done.why = fault
            return
        if ended.status not in case.ends:
            done.verdict, done.why = LOST, ended.err[-600:]
            return
        other, left = differences(found, self.wanted[case.name])
        if other:
            done.verdict, done.why = LOST, f"other or missing: {other[:5]}"
        elif left:
            done.verdict, done.why = LEFT, str(left[:5])

    def _kill(self, case: Case, rng: random.Random, done: Round) -> None:
        world = self.begin(case)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            after = rng.random() * 1.05 * self.seconds[case.name]
            children = self._start(case, world)
            which = rng.choice([None, *range(case.processes)]) if case.processes > 1 else None
            if children[0].ended_within(after):
                self._wait(children)
                done.done.append(f"ended before {after:.3f} s")
                break
            if which is None:
                for child in children:
                    child.kill()
            else:
                children[which].kill()
            self._wait(children)
            done.kills += 1
            done.done.append(f"killed{'' if which is None else f' process {which}'} after {after:.3f} s")
        self._end(case, world, done)

    def _mutant(self, case: Case, rng: random.Random, done: Round) -> None:
        world = self.begin(case)
        groups = [(free, sorted({p for g in globs for p in world.glob(g) if p.is_file()}))
                  for free, globs in ((True, case.free), (False, case.bound))]  # fmt: skip
        pairs = [(path, free) for free, paths in groups for path in paths]
        path, free = rng.choice(pairs)
        change = mutants.mutate_stack if path.name == "stack.json" else mutants.mutate
        told = change(path, rng, [p for p, _ in pairs])
        name = path.relative_to(world).as_posix()
        done.done.append(f"{name}: {told}")
        before = tree(world)
        ended = self._whole(case, world)
        free = free or told.startswith(mutants.SIGNED)
        self._judge_mutant(case, ended, before, tree(world), name, free, done)

    def _judge_mutant(self, case, ended, before, found, changed, free, done) -> None:
        if fault := fault_of(ended):
            done.verdict, done.why = fault
        elif ended.status in case.ends:
            other, left = differences(found, {**self.wanted[case.name], changed: found.get(changed, "")})
            other = [name for name in other if name != changed]
            left = [name for name in left if name != changed and not changed.startswith(name)]
            if free:
                done.verdict = ANSWERED if other or left else IDENTICAL
                half = [name for name in left if name.rpartition("/")[2].startswith(".")]
                if half:
                    done.verdict, done.why = LEFT, str(half)
            elif (other or left) and "is left out" in ended.out:
                done.verdict = TOLD
            elif other or left:
                done.verdict, done.why = SILENT, f"{other[:5]} {left[:5]}"
        elif ended.status == 2:
            done.verdict, done.why = REFUSED, ended.err[-300:]
            if not one_message(ended, case):
                done.verdict, done.why = MESSAGE, ended.err[-600:]
            left = [n for n in found if n not in before and n not in self.wanted[case.name]]
            if left:
                done.verdict, done.why = LEFT, str(left[:5])
        else:
            done.verdict, done.why = CRASH, f"status {ended.status}: {ended.err[-600:]}"

    def _full(self, case: Case, rng: random.Random, done: Round) -> None:
        """A small file system, or files of a limited size where none may be mounted."""
        world = self.begin(case)
        sizes = {p: p.stat().st_size for p in world.rglob("*") if p.is_file()}
        grown = [s for n, s in self._sizes(case).items() if world / n not in sizes]
        if rng.random() < 0.5 and can_mount():
            need = sum(-(-s // 4096) * 4096 for s in sizes.values()) + 4096 * (
                len(list(world.rglob("*"))) + 2
            )
            size = need + int(rng.random() * 1.3 * sum(grown)) + 4096
            with mounted(world, size):
                make_world(case, self.base, world)
                ended = self._whole(case, world)
                done.done.append(f"on {size} bytes, of which {need} were needed: status {ended.status}")
                if not self._refused(case, ended, done):
                    return
                subprocess.run(["mount", "-o", "remount,size=1g", str(world)], check=True)
                self._end(case, world, done)
                if done.verdict in FAULTS:
                    self._keep(case, done)
            return
        limit = int(rng.random() * 1.05 * max(grown, default=1))
        children = self._start(case, world, limits={resource.RLIMIT_FSIZE: limit})
        ended = self._wait(children)
        done.done.append(f"files of at most {limit} bytes: status {ended.status}")
        if self._refused(case, ended, done):
            self._end(case, world, done)

    def _ray(self, case: Case, rng: random.Random, done: Round) -> None:
        """What is killed is started again by the command itself, or by the same command."""
        world = self.begin(case)
        for _ in range(rng.choice([1, 2])):
            (driver,) = self._start(case, world)
            after = rng.random() * 3 * self.seconds[case.name] + 2
            done.done.append(ray_rounds.disturb(self.cluster, driver, after, rng))
            done.kills += "killed" in done.done[-1]
            ended = driver.wait(ray_rounds.MOST_SECONDS)
            if "driver killed" not in done.done[-1] and (fault := fault_of(ended)):
                done.verdict, done.why = fault
                return
        ended = self._start(case, world)[0].wait(ray_rounds.MOST_SECONDS)
        ray_rounds.without_logs(world)
        self._judge_whole(case, ended, tree(world), done)

    def _sizes(self, case: Case) -> dict[str, int]:
        kept = getattr(self, "_kept_sizes", None)
        if kept is None:
            self._kept_sizes = kept = {}
        if case.name not in kept:
            world = self.begin(case)
            self._whole(case, world)
            kept[case.name] = {p.relative_to(world).as_posix(): p.stat().st_size for p in world.rglob("*")
                               if p.is_file()}  # fmt: skip
            make_world(case, self.base, world)
        return kept[case.name]

    def _refused(self, case: Case, ended: Ended, done: Round) -> bool:
        """Whether a command without space ended as it should."""
        if fault := fault_of(ended):
            done.verdict, done.why = fault
        elif ended.status not in {*case.ends, 2}:
            done.verdict, done.why = CRASH, f"status {ended.status}: {ended.err[-600:]}"
        elif ended.status == 2 and not one_message(ended, case):
            done.verdict, done.why = MESSAGE, ended.err[-600:]
        return done.verdict not in FAULTS

    def _pair(self, case: Case, rng: random.Random, done: Round) -> None:
        """Two commands at once in one place: the files are those of one of them; who is refused is told."""
        words = rng.choice(case.pairs)
        other = Case(f"{case.name} (beside)", words, case.needs, without=case.without)
        more = [n for n in ("data/llama",) if n in words and n not in case.needs]
        both = Case(case.name, case.words, (*case.needs, *more), without=case.without)
        wanted = []
        for one in (both, Case(case.name, words, both.needs, without=case.without)):
            key = f"{one.words} beside {case.name}"
            if key not in self.wanted:
                world = self.begin(both)
                ended = self._whole(one, world)
                if ended.status != 0:
                    raise RuntimeError(f"{one.words}: {ended.status}\n{ended.err}")
                self.wanted[key] = tree(world)
            wanted.append(self.wanted[key])
        world = self.begin(both)
        first = self._start(both, world)
        time.sleep(rng.random() * 1.1 * self.seconds[case.name])
        second = self._start(other, world, words)
        ends = [self._wait(first), self._wait(second)]
        done.done.append(f"beside {words}: statuses {[e.status for e in ends]}")
        for ended in ends:
            if fault := fault_of(ended):
                done.verdict, done.why = fault
                return
            if ended.status not in {0, 2}:
                done.verdict, done.why = CRASH, f"status {ended.status}: {ended.err[-600:]}"
                return
        if all(ended.status == 2 for ended in ends):
            done.verdict, done.why = LOST, ends[0].err[-300:] + ends[1].err[-300:]
            return
        found = tree(world)
        last = [w for w, e in zip(wanted, ends, strict=True) if e.status == 0]
        judged = [differences(found, w) for w in last]
        if ([], []) not in judged:
            done.verdict, done.why = LOST, f"a mixture, or something left: {judged[:2]}"


def fault_of(ended: Ended) -> tuple[str, str] | None:
    """What no command may do, whatever it was given."""
    if ended.hung:
        return HANG, ended.err[-300:]
    assert ended.status is not None
    if "Traceback (most recent call last)" in ended.err or ended.status in {70, UNCAUGHT}:
        return TRACEBACK, ended.err[-1500:]
    if ended.status < 0:
        return CRASH, f"signal {-ended.status}: {ended.err[-600:]}"
    return None


def one_message(ended: Ended, case: Case) -> bool:
    """Whether a refusal is told once; of several processes, each may fail on a file of its own."""
    told = sum(line.startswith("error: ") for line in ended.err.splitlines())
    return 1 <= told <= case.processes


_mountable: list[bool] = []


def can_mount() -> bool:
    """Whether a small file system may be mounted here."""
    if not _mountable:
        place = Path(os.environ.get("TMPDIR", "/tmp")) / f"campaign-mount-{os.getpid()}"
        place.mkdir()
        able = (
            os.geteuid() == 0
            and not subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)],
                check=False,
                capture_output=True,
            ).returncode
        )
        if able:
            subprocess.run(["umount", str(place)], check=True)
        place.rmdir()
        _mountable.append(able)
    return _mountable[0]


@contextmanager
def mounted(place: Path, size: int) -> Iterator[None]:
    """Mount an empty file system of some bytes over a directory."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def table(rounds: list[Round]) -> str:
    """Lay the figures out, by command and kind."""
    from data.console.command import format_table

    header = ["command, kind", "rounds", "kills", IDENTICAL, REFUSED, ANSWERED, TOLD, *FAULTS]
    lines = []
    for kind in (KILL, MUTANT, FULL, PAIR, RAY):
        mine = [r for r in rounds if r.kind == kind]
        names = list(dict.fromkeys(r.case for r in mine))
        for name in [*sorted(names), "all"] if mine else []:
            some = [r for r in mine if name in {r.case, "all"}]
            counts = Counter(r.verdict for r in some)
            cells = [counts.get(v, 0) for v in (IDENTICAL, REFUSED, ANSWERED, TOLD, *FAULTS)]
            lines.append([f"{kind}: {name}", *map(str, [len(some), sum(r.kills for r in some), *cells])])
    return format_table(header, lines)
