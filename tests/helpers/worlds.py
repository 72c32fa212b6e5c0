"""What the campaign runs: the commands, small inputs for each, and how its files are compared.

A world is the directory that a command runs in and writes to. It is made anew for every round, at the same
place, for records name absolute paths.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

RECIPE = """
data: {rows: 40, folds: 2, seed: 1}
teachers:
  llama: &teacher
    backbone:
      tiny: {family: llama, hidden_size: 64, intermediate_size: 64, layers: 1, heads: 2, kv_heads: 1,
             vocab_size: 300, pretrain_steps: 2}
    lora: {r: 4, alpha: 8}
    encode: {max_length: 96}
    train: {epochs: 1, lr: 1.0e-3, head_lr: 1.0e-2, rows_per_step: 8, log_steps: 1, checkpoint_steps: 1}
  gemma2:
    <<: *teacher
    backbone:
      tiny: {family: gemma2, hidden_size: 64, intermediate_size: 64, layers: 1, heads: 2, kv_heads: 1,
             vocab_size: 300, pretrain_steps: 2}
student:
  <<: *teacher
  distill: {weight: 0.6, temperature: 2.0, leakage: apart}
"""

COSTS = "--cost m1=0.1 m2=1"
BASE = [
    "data.prepare --source arena --rows 40 --folds 2 --seed 1 --out data",
    "distill.teacher_oof --recipe recipe.yaml --data data --only llama",
    "distill.student --recipe recipe.yaml --data data",
    "distill.export --model data/student --out exported",
    "distill.predict --model data/llama data/student --data new.csv --columns columns.yaml --out fresh",
    "ensemble.stack --oof m1.csv m2.csv --labels labels.csv --method lightgbm --out stack",
    f"ensemble.route --cheap m1.csv --dear m2.csv --labels labels.csv {COSTS} --budget 0.5 --out router",
    "ensemble.stack --oof c1.csv c2.csv --labels chosen.csv --out sets",
    "data.prepare --source votes.csv --folds 2 --out first",
    "distill.teacher_oof --recipe recipe.yaml --data data --only llama --out other "
    "teachers.llama.train.lr=2.0e-3",
]
"""What the inputs of all commands are made by, in this order."""


@dataclass(frozen=True)
class Case:
    """A command that is tried.

    Attributes
    ----------
    name : str
    words : str
        Module and arguments.
    needs : tuple of str
        What of the base its world begins with.
    free, bound : tuple of str
        Globs of inputs: those of which any content may be meant, and those that a record covers.
    without : tuple of str
        Globs of what is taken away first, so that there is something left to do.
    ends : tuple of int
        Exit statuses that are answers.
    kills, full, mutants : bool
        Whether it is killed, run on a full disk, given changed inputs.
    processes : int
        As many as ``torchrun`` would start.
    pairs : tuple of str
        Commands beside it, into the same place.
    local : str
        Of a command on a cluster: the one that leaves the same here.
    """

    name: str
    words: str
    needs: tuple[str, ...]
    free: tuple[str, ...] = ()
    bound: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    ends: tuple[int, ...] = (0,)
    kills: bool = True
    full: bool = True
    processes: int = 1
    pairs: tuple[str, ...] = ()
    local: str = ""

    @property
    def command(self) -> str:
        return self.words.split()[0]


RUN = ("data/student/**/*", "data/backbones/**/*")
STORE = (
    "data/llama/manifest.json",
    "data/llama/oof.parquet",
    "data/llama/fold-*/*",
    "data/llama-in_sample/*",
)
PREPARED = ("data/rows.parquet", "data/folds.parquet", "data/manifest.json")
TABLE = "--columns columns.yaml"
CASES = [
    Case(
        "prepare a CSV",
        "data.prepare --source votes.csv --folds 3 --near 0.8 --tokenizer tokenizer --out out",
        ("votes.csv", "tokenizer"),
        free=("votes.csv", "tokenizer/*"),
        pairs=("data.prepare --source votes.csv --folds 4 --tokenizer tokenizer --out out",),
    ),
    Case(
        "prepare a plan",
        "data.prepare --source sources.yaml --folds 2 --out out",
        ("sources.yaml", "votes.csv", "votes.jsonl", "votes.parquet"),
        free=("sources.yaml", "votes.csv", "votes.jsonl", "votes.parquet"),
    ),
    Case(
        "prepare candidates",
        "data.prepare --source map.csv --folds 2 --out out",
        ("map.csv",),
        free=("map.csv",),
    ),
    Case("check", "data.prepare --check data", PREPARED, bound=PREPARED, kills=False, full=False),
    Case(
        "teachers",
        "distill.teacher_oof --recipe recipe.yaml --data data --only llama",
        ("recipe.yaml", *PREPARED),
        pairs=("distill.teacher_oof --recipe recipe.yaml --data data --only llama",),
    ),
    Case(
        "teachers of two processes",
        "distill.teacher_oof --recipe recipe.yaml --data data --only llama",
        ("recipe.yaml", *PREPARED),
        processes=2,
    ),
    Case(
        "teachers, estimated",
        "distill.teacher_oof --recipe recipe.yaml --data data --dry-run",
        ("recipe.yaml", *PREPARED),
        free=("recipe.yaml",),
        bound=PREPARED,
        kills=False,
        full=False,
    ),
    Case(
        "teachers, continued",
        "distill.teacher_oof --recipe recipe.yaml --data data --only llama",
        ("recipe.yaml", *PREPARED, "data/llama", "data/llama-in_sample", "data/backbones"),
        bound=(*PREPARED, "data/llama/**/*", "data/backbones/**/*"),
        without=("data/llama/oof.parquet", "data/llama-in_sample/*", "data/llama/fold-1/oof.parquet"),
    ),
    Case(
        "teachers after a stage",
        "distill.teacher_oof --recipe recipe.yaml --data data --only llama "
        "teachers.llama.pretrain.data=first",
        ("recipe.yaml", "first", *PREPARED),
        bound=("first/*", *PREPARED),
    ),
    Case(
        "average",
        "distill.average --model data/llama other/llama --out out",
        (*PREPARED, "data/llama", "data/backbones", "other"),
        bound=(*PREPARED, "data/llama/**/*", "other/llama/**/*", "data/backbones/**/*"),
        pairs=("distill.average --model other/llama data/llama --out out",),
    ),
    Case(
        "student",
        "distill.student --recipe recipe.yaml --data data --teachers data/llama",
        ("recipe.yaml", *PREPARED, "data/llama", "data/llama-in_sample"),
        bound=(*PREPARED, *STORE),
        pairs=("distill.student --recipe recipe.yaml --data data --teachers data/llama",),
    ),
    Case(
        "predict",
        f"distill.predict --model data/student --data new.csv {TABLE} --out out.csv",
        ("data/student", "data/backbones", "new.csv", "columns.yaml"),
        free=("new.csv", "columns.yaml"),
        bound=RUN,
        pairs=(f"distill.predict --model data/llama --data new.csv {TABLE} --out out.csv",),
    ),
    Case(
        "predict with several",
        f"distill.predict --model data/llama data/student --data new.csv {TABLE} --out out",
        ("data/llama", "data/student", "data/backbones", "new.csv", "columns.yaml"),
        free=("new.csv",),
        pairs=(f"distill.predict --model data/llama data/student --data new.csv {TABLE} --out out",),
    ),
    Case(
        "predict in shards",
        "distill.predict --model data/student --data data/rows.parquet --out out --shard-rows 8",
        ("data/student", "data/backbones", "data/rows.parquet"),
        free=("data/rows.parquet",),
        bound=RUN,
        pairs=("distill.predict --model data/llama --data data/rows.parquet --out out --shard-rows 8",),
    ),
    Case(
        "predict in shards, continued",
        "distill.predict --model data/student --data data/rows.parquet --out out --shard-rows 8",
        ("data/student", "data/backbones", "data/rows.parquet", "out"),
        bound=("out/*",),
        without=("out/part-000002.parquet",),
        kills=False,
        full=False,
    ),
    Case(
        "predict by two processes",
        f"distill.predict --model data/student --data new.csv {TABLE} --out out.csv",
        ("data/student", "data/backbones", "new.csv", "columns.yaml"),
        processes=2,
    ),
    Case(
        "predict with an export",
        f"distill.predict --model exported --data new.csv {TABLE} --out out.csv",
        ("exported", "new.csv", "columns.yaml"),
        bound=("exported/*",),
    ),
    Case(
        "cascade",
        f"distill.predict --cascade data/student data/llama --data new.csv {TABLE} --out out.csv",
        ("data/student", "data/llama", "data/backbones", "new.csv", "columns.yaml", *PREPARED),
        bound=(*PREPARED, "data/student/*", "data/llama/*"),
    ),
    Case(
        "export",
        "distill.export --model data/student --out out",
        ("data/student", "data/backbones", *PREPARED),
        bound=(*PREPARED, *RUN),
        pairs=("distill.export --model data/student --out out",),
    ),
    Case(
        "export with graphs",
        "distill.export --model data/student --out out --onnx int8",
        ("data/student", "data/backbones", *PREPARED),
        pairs=("distill.export --model data/student --out out --onnx",),
    ),
    Case(
        "race",
        "distill.race --recipe recipe.yaml --data data --looks 3",
        ("recipe.yaml", *PREPARED),
    ),
    Case(
        "doctor",
        "distill.doctor data/student",
        ("data/student", "data/backbones", *PREPARED),
        free=(*PREPARED, *RUN),
        ends=(0, 1),
        kills=False,
        full=False,
    ),
    Case(
        "stack",
        "ensemble.stack --oof m1.csv m2.csv --labels labels.csv --out out",
        ("m1.csv", "m2.csv", "labels.csv"),
        free=("m1.csv", "m2.csv", "labels.csv"),
        pairs=("ensemble.stack --oof m1.csv m2.csv --labels labels.csv --seed 1 --out out",),
    ),
    Case(
        "stack stores",
        "ensemble.stack --data data --out out",
        (*PREPARED, "data/llama", "data/student"),
        bound=(*PREPARED, "data/llama/*", "data/student/*"),
    ),
    Case(
        "stack of candidates",
        "ensemble.stack --oof c1.csv c2.csv --labels chosen.csv --out out",
        ("c1.csv", "c2.csv", "chosen.csv"),
        free=("c1.csv", "c2.csv", "chosen.csv"),
    ),
    Case(
        "blend of candidates",
        "ensemble.predict --stack sets --oof c1.csv c2.csv --out out.csv",
        ("sets", "c1.csv", "c2.csv"),
        free=("c1.csv", "c2.csv"),
        bound=("sets/*",),
    ),
    Case(
        "blend",
        "ensemble.predict --stack stack --oof m1=fresh/llama.csv m2=fresh/student.csv --out out.csv",
        ("stack", "fresh"),
        free=("fresh/*",),
        bound=("stack/*",),
        pairs=("ensemble.predict --stack stack --oof m2=fresh/llama.csv m1=fresh/student.csv --out out.csv",),
    ),
    Case(
        "router",
        f"ensemble.route --cheap m1.csv --dear m2.csv --labels labels.csv {COSTS} --budget 0.5 --out out",
        ("m1.csv", "m2.csv", "labels.csv"),
        free=("m1.csv", "m2.csv", "labels.csv"),
        pairs=(
            f"ensemble.route --cheap m2.csv --dear m1.csv --labels labels.csv {COSTS} --budget 2 --out out",
        ),
    ),
    Case(
        "route",
        "ensemble.route --router router --cheap fresh/llama.csv --dear fresh/student.csv --out out.csv",
        ("router", "fresh"),
        free=("fresh/*",),
        bound=("router/router.json",),
        pairs=("ensemble.route --router router --cheap fresh/llama.csv --out out.csv",),
    ),
]


def write_sources(base: Path) -> None:
    """Write the files that nothing makes: recipe, tables, prediction sets."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from small_tokenizers import small_tokenizer
    from stack_files import write_sets

    base.mkdir(parents=True)
    (base / "recipe.yaml").write_text(RECIPE)
    (base / "columns.yaml").write_text(
        "row_id: id\nprompt: question\nresponse_a: first\nresponse_b: second\n"
    )
    rng = random.Random(0)
    words = ["red", "blue", "tea", "moon", "river", "stone", "paper", "light", "seven", "quiet", "open"]

    def sentence() -> str:
        return " ".join(rng.choice(words) for _ in range(rng.randint(3, 9)))

    def rows(prefix: str, n: int = 40) -> list[list[str]]:
        return [[f"{prefix}{i}", sentence(), sentence(), sentence(), str(i % 3)] for i in range(n)]

    def table(name: str, header: list[str], lines: list[list[str]]) -> None:
        with open(base / name, "w", newline="", encoding="utf-8") as handle:
            csv.writer(handle, lineterminator="\n").writerows([header, *lines])

    names = ["id", "prompt", "response_a", "response_b", "label"]
    table("votes.csv", names, rows("a"))
    table("new.csv", ["id", "question", "first", "second"], [row[:4] for row in rows("n", 24)])
    records = [dict(zip(names, row, strict=True)) for row in rows("b", 20)]
    (base / "votes.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    pq.write_table(
        pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows("c", 20)]),
        base / "votes.parquet",
    )
    (base / "sources.yaml").write_text("sources: [votes.csv, votes.jsonl, votes.parquet]\nfolds: 2\n")
    small_tokenizer("byte_bpe").save_pretrained(base / "tokenizer")
    write_sets(base, n=60)
    write_candidates(base)


def write_candidates(base: Path, n: int = 40) -> None:
    """Write a classroom's rows, and predictions of rows with two to four candidates by two models."""
    from pyarrow import csv as arrow_csv

    from data.classroom import simulate_classroom

    arrow_csv.write_csv(simulate_classroom(n, 3), base / "map.csv")
    rng = random.Random(1)
    sets = [[f"option {k}" for k in range(rng.randint(2, 4))] for _ in range(n)]
    right = [rng.choice(own) for own in sets]
    for name in ("c1.csv", "c2.csv"):
        lines = ["row_id,candidate,probability"]
        for i, own in enumerate(sets):
            scores = [rng.uniform(0.1, 1) + (option == right[i]) for option in own]
            lines += [f"r{i},{o},{x / sum(scores):.6f}" for o, x in zip(own, scores, strict=True)]
        (base / name).write_text("\n".join(lines) + "\n")
    labels = [f"r{i},{option}" for i, option in enumerate(right)]
    (base / "chosen.csv").write_text("\n".join(["id,label", *labels]) + "\n")


def make_world(case: Case, base: Path, world: Path) -> None:
    """Put into an empty directory what a command needs."""
    for item in world.iterdir() if world.is_dir() else []:
        remove(item)
    world.mkdir(parents=True, exist_ok=True)
    for name in case.needs:
        (world / name).parent.mkdir(parents=True, exist_ok=True)
        if (base / name).is_dir():
            shutil.copytree(base / name, world / name, dirs_exist_ok=True)
        else:
            shutil.copyfile(base / name, world / name)
    for glob in case.without:
        for path in world.glob(glob):
            remove(path)


def remove(path: Path) -> None:
    """Delete a file, a link or a directory."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


TIMED = {
    "metrics.jsonl": rb'.*"train_runtime".*\n|"epoch": .*',
    "look-1.json": rb'"(seconds|peak)": [^,}]+',
    "look-2.json": rb'"(seconds|peak)": [^,}]+',
    "look-3.json": rb'"(seconds|peak)": [^,}]+',
    "race.html": rb"(?s).*",
}
"""Files that say how long something took and what memory, and where; the rest of them is compared."""


def tree(world: Path) -> dict[str, str]:
    """Hash every file of a world by its path; what a log says of time is left out."""
    found = {}
    for path in sorted(world.rglob("*")):
        name = path.relative_to(world).as_posix()
        if path.is_symlink():
            found[name] = f"link {path.readlink()}"
        elif path.is_file():
            content = path.read_bytes()
            if path.name in TIMED:
                content = re.sub(TIMED[path.name], b"", content)
            found[name] = hashlib.sha256(content).hexdigest()
        else:
            found[name] = "directory"
    return found


def differences(found: Mapping[str, str], wanted: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return which paths of a tree are other or missing, and which are left over."""
    other = [name for name in wanted if found.get(name) != wanted[name]]
    return other, [name for name in found if name not in wanted]
