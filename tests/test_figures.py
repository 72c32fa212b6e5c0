"""The numbers of README and of the pages are those of the files that they come from."""

from __future__ import annotations

import re

from recipes import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS, GPU = ((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("results", "gpu"))


def rows(text: str, heading: str) -> dict[str, list[str]]:
    """The first table under a heading: cells by the first of their row."""
    section = text.split(heading, 1)[1].split("\n## ", 1)[0]
    lines = re.search(r"(?:^\|.*\n)+", section, flags=re.M)
    assert lines, heading
    cells = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in lines[0].splitlines()[2:]]
    return {row[0]: row[1:] for row in cells}


def test_the_real_rows_are_those_of_their_report() -> None:
    study = (ROOT / "benchmarks" / "study.md").read_text(encoding="utf-8")
    report = rows(study, "## Teachers, stack, student")
    for page, least in ((RESULTS, 9), (README, 8)):
        shown = rows(page, "## Real models on real rows")
        assert len(shown) >= least
        for name, (loss, interval, accuracy, strict) in shown.items():
            assert report[name][:4] == [loss, interval, accuracy, strict], name


def test_the_demos_picture_shows_the_demos_table() -> None:
    picture = (ROOT / "benchmarks" / "demo.svg").read_text(encoding="utf-8")
    losses = re.findall(r">(\d\.\d{4})<", picture)
    shown = rows(RESULTS, "## What the demo shows")
    assert losses == [loss for loss, _ in shown.values()]
    for name in shown:
        assert f">{name.split(' (')[0]}<" in picture


def test_what_routers_win_is_what_their_table_says() -> None:
    table = (ROOT / "benchmarks" / "router.md").read_text(encoding="utf-8").split("## What is won", 1)[1]
    lines = [line.split("|") for line in table.splitlines() if line.startswith("| ") and "(" in line]
    assert len(lines) == 24

    def beyond_noise(column: int, mark: str = "(+") -> int:
        return sum(mark in line[column] for line in lines)

    page = (ROOT / "docs" / "route.md").read_text(encoding="utf-8")
    counts = r"in (\d+) of 24 settings.*?usual rule, in (\d+)\. .*?better in (\d+) and worse in (\d+);"
    won = re.search(counts, page, flags=re.S)
    assert won
    found = [*(beyond_noise(column) for column in (3, 4, 5)), beyond_noise(5, "to -")]
    assert [int(count) for count in won.groups()] == found


def test_tokens_a_second_are_those_of_the_log() -> None:
    log = (ROOT / "benchmarks" / "gpu_training.md").read_text(encoding="utf-8")
    section = GPU.split("## Real Llama-3.1 and Gemma-2 on one GPU", 1)[1].split("\n## ", 1)[0]
    table = [line for line in section.splitlines() if line.startswith("|") and "GiB" in line]
    rates = [rate for line in table for rate in re.findall(r"\d{1,3},\d{3}", line)]
    assert len(rates) >= 15
    missing = [rate for rate in rates if rate not in log]
    assert not missing
    assert set(re.findall(r"(\d+,\d{3}) tokens a second", README)) <= set(rates)
