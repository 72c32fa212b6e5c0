"""The report is one self-contained page, and text from rows stays text."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from jinja2 import UndefinedError
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from stack_files import prepared, write_sets, write_store

from data.classes import Classes
from data.softmax import softmax
from ensemble.methods.base import Blender
from ensemble.methods.blend import EqualMean, SimplexBlend
from ensemble.methods.pool import LogPool
from ensemble.reading.load import load_problem
from ensemble.reading.problem import Problem
from ensemble.report.frame import SCRIPT, SCRIPT_HASH, render
from ensemble.report.page import render_report, write_report
from ensemble.scoring.bootstrap import bootstrap
from ensemble.scoring.explore import (
    linear_losses,
    move_weight,
    pool_loss,
    simulate_problem,
    take_sample,
    ternary_map,
)
from ensemble.scoring.results import Result, evaluate
from ensemble.scoring.slices import (
    _normal_interval,
    compare_slices,
    confusion,
    disagreement,
    member_slices,
    reliability,
    smooth_reliability,
)
from ensemble.solvers.numbers import PROB_FLOOR, log_loss

HOSTILE = (
    "<script>alert(1)</script> \"><img src=x onerror=alert(2)> </svg></style> ' & &amp; {{ 6 * 7 }} {% raw %}"
)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    _, P = prepared(folder / "data", text=lambda i: f"{i} {HOSTILE}")
    store = write_store(folder / 'x"><img onerror=1>', folder / "data", P[:, 0])
    other = write_store(folder / "plain", folder / "data", P[:, 1])
    problem = load_problem([str(store), str(other)])
    return render_report(problem, evaluate(problem, draws=100))


def test_hostile_text_stays_text(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    names = {tag for tag, _ in tags.found}
    assert not names & {"img", "iframe", "object", "link"}
    assert [attrs for tag, attrs in tags.found if tag == "script"] == [
        {"type": "application/json", "id": "data"},
        {},
    ]
    assert not [name for _, attrs in tags.found for name in attrs if name.startswith("on")]
    assert HOSTILE in "".join(tags.text)


def test_nothing_comes_from_a_network(page: str) -> None:
    text = page.replace("src=x onerror", "")
    assert not re.search(r"(?<!_)(?:src|href)\s*=(?!.#)|url\(|@import|https?://", text)
    assert "default-src 'none'" in page
    assert 'name="viewport"' in page


def test_shows_its_parts(page: str) -> None:
    for heading in (
        "Methods and members",
        "Fitted weights",
        "Weights by hand",
        "What each member is worth",
        "Confusion by class",
        "Reliability",
        "Where the blend helps",
        "Worst rows",
    ):
        assert f"<h2>{heading}</h2>" in page
    assert "Bayes optimum" in page
    assert "length in characters" in page
    assert "nan" not in re.sub(r"[a-z]*nan[a-z]+|[a-z]+nan[a-z]*", "", page)


def test_the_honest_score_comes_first_and_every_method_once(page: str) -> None:
    contents = re.findall(r'<li><a href="#(\w+)">([^<]+)</a>', page)
    for name, title in contents:
        assert f'<section id="{name}"><h2>{title}</h2>' in page
    assert len(contents) >= 8
    assert "honest" in re.findall(r'<div class="tile">.*?</div>', page, re.DOTALL)[0]
    table = page.split('<table class="scores">')[1].split("</table>")[0]
    lines = re.findall(r'<tr class="\w*"><th scope="row">(.*?)</th>(.*?)</tr>', table, re.DOTALL)
    losses = [float(re.search(r"<td>(\d\.\d{4})</td>", line)[1]) for _, line in lines]
    assert losses == sorted(losses)
    names = [name.replace("<wbr>", "") for name, _ in lines]
    assert names.count("logit+lightgbm+mlp+calibration") == names.count("mean") == 1
    assert page.count("logit+lightgbm+mlp+calibration") <= 1


def test_notes_stand_at_the_top_and_are_escaped(tmp_path: Path) -> None:
    paths, labels = write_sets(tmp_path, n=60)
    problem = replace(load_problem(paths, Path(labels)), notes=(f"left out: {HOSTILE}",))
    page = render_report(problem, quick_result(problem))
    assert 0 < page.index("left out: ") < page.index("<h2>Methods and members</h2>")
    assert HOSTILE not in page
    assert '<ul class="notes">' not in render_report(replace(problem, notes=()), quick_result(problem))


def test_reliability_of_true_probabilities_is_the_diagonal() -> None:
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(4), size=60_000)
    labels = (rng.random((len(probs), 1)) > probs.cumsum(axis=1)).sum(axis=1)
    curve = reliability(probs, np.eye(4)[labels])
    assert curve.count.sum() == probs.size
    assert curve.error < 0.005
    assert reliability(np.eye(4)[labels][:, [1, 2, 3, 0]], np.eye(4)[labels]).error == pytest.approx(0.5)


def test_slices_cover_every_row_of_each_kind(tmp_path: Path) -> None:
    _, P = prepared(tmp_path / "data", n=200)
    problem = load_problem(
        [str(write_store(tmp_path / f"t{m}", tmp_path / "data", P[:, m])) for m in range(2)]
    )
    result = evaluate(problem, draws=100)
    slices = compare_slices(problem, problem.P[:, 0], problem.P.mean(axis=1), result.draws)
    for kind in {part.kind for part in slices}:
        assert sum(part.n for part in slices if part.kind == kind) == 200
    assert all(part.interval.low <= part.interval.high for part in slices)
    assert disagreement(problem.P[:, [0, 0]]).max() == pytest.approx(0)
    alone = {(kind, name): losses for kind, name, _, losses in member_slices(problem)}
    for part in slices:
        assert alone[part.kind, part.name][0] == pytest.approx(part.single)


def test_intervals_of_many_groups_are_the_bootstraps_limit() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(1500), 2)
    values = rng.normal(size=1500)[groups] + rng.normal(size=3000)
    limit = _normal_interval(values, groups)
    drawn = bootstrap(groups, 2000).interval(values)
    assert limit.low == pytest.approx(drawn.low, abs=0.006)
    assert limit.high == pytest.approx(drawn.high, abs=0.006)


def test_script_data_cannot_end_early(tmp_path: Path) -> None:
    (tmp_path / "data.jinja").write_text("{{ data | tojson }}")
    text = render("data.jinja", tmp_path, data={"names": [HOSTILE, "</script><!--", "\u2028"]})
    assert not set(text) & set("<>&\u2028")
    assert json.loads(text)["names"] == [HOSTILE, "</script><!--", "\u2028"]


def test_a_number_that_is_none_is_no_data_of_a_script(tmp_path: Path) -> None:
    (tmp_path / "data.jinja").write_text("{{ data | tojson }}")
    with pytest.raises(ValueError, match="not JSON compliant"):
        render("data.jinja", tmp_path, data=[float("nan")])


def test_a_name_that_nobody_gives_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "page.jinja").write_text("{{ absent }}")
    with pytest.raises(UndefinedError, match="absent"):
        render("page.jinja", tmp_path)


def test_policy_allows_the_script_that_the_page_holds(page: str) -> None:
    assert f"script-src '{SCRIPT_HASH}'" in page
    assert page.count(f"<script>{SCRIPT}</script>") == 1
    assert not re.search(r"\b(?:eval|fetch|XMLHttpRequest|import|innerHTML)\b", SCRIPT)


@pytest.mark.parametrize(("members", "n_classes"), [(1, 3), (2, 2), (4, 3), (12, 4), (3, 30)])
def test_any_number_of_members_and_classes(members: int, n_classes: int) -> None:
    problem = simulate_problem(200, members, Classes(tuple(f"c{k}" for k in range(n_classes))))
    result = quick_result(problem)
    page = render_report(problem, result)
    assert page == render_report(problem, result)
    assert page.count('type="range"') == members
    assert page.count("<polygon") == (400 if members > 2 else 0)
    assert page.count("<select") == (3 if members > 3 else 0)


def quick_result(problem: Problem) -> Result:
    """A result of the three cheapest methods, as :func:`evaluate` would build it."""

    def few(P: np.ndarray, y: np.ndarray, *args: object, **kwargs: object) -> dict[str, Blender]:
        return {
            "mean": EqualMean().fit(P, y),
            "simplex": SimplexBlend().fit(P, y),
            "log-pool": LogPool(30.0).fit(P, y),
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ensemble.scoring.crossfit.fit_methods", few, raising=False)
        return evaluate(problem, draws=50)


def test_smooth_calibration_error_matches_the_shift() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(40_000)
    honest = smooth_reliability(p, (rng.random(len(p)) < p).astype(float))
    shifted = smooth_reliability(p, (rng.random(len(p)) < np.clip(p + 0.1, 0, 1)).astype(float))
    assert honest.error < 0.015
    assert shifted.error == pytest.approx(0.095, abs=0.012)
    assert shifted.error == pytest.approx(shifted.bandwidth, abs=1e-3)
    assert np.abs(honest.predicted - honest.observed).max() < 0.06
    assert smooth_reliability(np.full(100, 0.5), np.ones(100)).error == pytest.approx(0.5, abs=1e-3)


def test_weights_are_rows_written_often() -> None:
    problem = simulate_problem(200, seed=3)
    times = np.random.default_rng(0).integers(1, 4, len(problem))
    rows = np.repeat(np.arange(len(problem)), times)
    weighted = replace(problem, weight=times / times.mean())
    a = reliability(problem.P[:, 0], problem.y, weight=weighted.weight)
    b = reliability(problem.P[rows, 0], problem.y[rows])
    np.testing.assert_allclose(a.observed, b.observed)
    assert a.error == pytest.approx(b.error)
    assert a.smooth.error == pytest.approx(b.smooth.error)
    for kind, name, _, losses in member_slices(weighted)[:3]:
        assert kind == "true class"
        of_class = rows[problem.labels[rows] == problem.classes.names.index(name)]
        wanted = [log_loss(problem.P[of_class, m], problem.y[of_class]).mean() for m in range(3)]
        np.testing.assert_allclose(losses, wanted)


def test_a_floor_under_the_pages_numbers_is_told() -> None:
    problem = simulate_problem(60)
    told = "Probabilities under 1e-07 are taken as that here."
    assert told not in render_report(problem, quick_result(problem))
    P = problem.P.copy()
    P[0, 0] = [1, 0, 0]
    problem = replace(problem, P=P)
    assert told in render_report(problem, quick_result(problem))


def test_confusion_counts_targets() -> None:
    probs = np.array([[0.7, 0.3], [0.4, 0.6], [0.2, 0.8]])
    counts, given = confusion(probs, np.array([[1.0, 0], [1, 0], [0.5, 0.5]]))
    np.testing.assert_allclose(counts, [[1, 1.5], [0, 0.5]])
    np.testing.assert_allclose(given, [[1.2 / 2.5, 1.3 / 2.5], [0.2, 0.8]])


class TestInBrowser:
    """The page in headless Chromium: what its script computes is what Python computes."""

    @pytest.fixture(scope="class")
    def problem(self, tmp_path_factory: pytest.TempPathFactory) -> Problem:
        folder = tmp_path_factory.mktemp("browser")
        _, P = prepared(folder / "data", n=240, text=lambda i: f"{i} {HOSTILE} {'long' * 60}")
        names = ['x"><img onerror=1>', "<script>document.title=1<", "plain", "a" * 70]
        rng = np.random.default_rng(0)
        stores = []
        for m, name in enumerate(names):
            probs = softmax(np.log(P[:, m % 2]) + 0.5 * rng.normal(size=P[:, 0].shape))
            stores.append(str(write_store(folder / name, folder / "data", probs)))
        return load_problem(stores)

    @pytest.fixture(scope="class")
    def result(self, problem: Problem) -> Result:
        return quick_result(problem)

    @pytest.fixture
    def opened(
        self, browser: webdriver.Chrome, problem: Problem, result: Result, tmp_path: Path
    ) -> webdriver.Chrome:
        path = tmp_path / "report.html"
        write_report(path, problem, result)
        browser.get_log("browser")
        browser.get(path.as_uri())
        return browser

    def test_sliders_compute_what_python_computes(
        self, opened: webdriver.Chrome, problem: Problem, result: Result
    ) -> None:
        sample = take_sample(problem)
        simplex, pool = result.fitted["simplex"], result.fitted["log-pool"]
        assert isinstance(simplex, SimplexBlend)
        assert isinstance(pool, LogPool)
        weights = simplex.weights_
        assert shown(opened, "loss") == f"{float(linear_losses(sample.P, sample.y, weights)):.4f}"
        before = shown(opened, "loss")
        for member, value in ((2, 0.7), (0, 0.25), (3, 0.0), (1, 1.0), (0, 0.5)):
            slide(opened, member, value)
            weights = move_weight(weights, member, value)
            expected = float(linear_losses(sample.P, sample.y, weights))
            assert float(shown(opened, "loss")) == pytest.approx(expected, abs=6e-5)
            np.testing.assert_allclose(outputs(opened, len(weights)), weights, atol=6e-4)
        assert shown(opened, "loss") != before
        change = float(shown(opened, "change"))
        assert change == pytest.approx(expected - float(before), abs=2e-4)
        opened.find_element(By.ID, "reset").click()
        assert shown(opened, "loss") == before
        assert shown(opened, "change") == "+0.0000"
        opened.find_element(By.ID, "equal").click()
        assert outputs(opened, 4) == [0.25] * 4

        opened.find_element(By.CSS_SELECTOR, "input[value=pool]").click()
        expected = pool_loss(sample.P, sample.y, pool.weights_, pool.bias_, pool.floor_)
        assert float(shown(opened, "loss")) == pytest.approx(expected, abs=6e-5)
        slide(opened, 1, 0.9)
        free = pool.weights_.copy()
        free[1] = 0.9
        expected = pool_loss(sample.P, sample.y, free, pool.bias_, pool.floor_)
        assert float(shown(opened, "loss")) == pytest.approx(expected, abs=6e-5)
        assert not severe(opened)

    def test_rows_count_for_their_weights(
        self, browser: webdriver.Chrome, problem: Problem, tmp_path: Path
    ) -> None:
        """The page's loss is that of the same rows, each written as often as it counts."""
        times = np.random.default_rng(0).integers(1, 4, len(problem))
        weighted = replace(problem, weight=times / times.mean())
        result = quick_result(weighted)
        write_report(tmp_path / "report.html", weighted, result)
        browser.get_log("browser")
        browser.get((tmp_path / "report.html").as_uri())
        rows = np.repeat(np.arange(len(problem)), times)
        P, y = problem.P[rows], problem.y[rows]
        simplex, pool = result.fitted["simplex"], result.fitted["log-pool"]
        assert isinstance(simplex, SimplexBlend)
        assert isinstance(pool, LogPool)
        assert float(shown(browser, "loss")) == pytest.approx(
            float(linear_losses(P, y, simplex.weights_)), abs=2e-4
        )
        assert result.score("simplex").in_sample == pytest.approx(float(shown(browser, "loss")), abs=2e-4)
        browser.find_element(By.CSS_SELECTOR, "input[value=pool]").click()
        expected = pool_loss(P, y, pool.weights_, pool.bias_, pool.floor_)
        assert float(shown(browser, "loss")) == pytest.approx(expected, abs=2e-4)
        assert "Rows count for their weights." in browser.find_element(By.ID, "explore").text
        assert not severe(browser)

    def test_the_pool_is_the_fitted_one(
        self, browser: webdriver.Chrome, problem: Problem, tmp_path: Path
    ) -> None:
        """A pool that floors members' probabilities does so on the page too."""
        P = problem.P.copy()
        P[::9, 0] = [1, 0, 0]
        harsh = replace(problem, P=P)
        result = quick_result(harsh)
        pool = LogPool(floor=0.01).fit(P, harsh.y, None, harsh.groups)
        assert pool.floor_ > PROB_FLOOR
        result.fitted["log-pool"] = pool
        write_report(tmp_path / "report.html", harsh, result)
        browser.get((tmp_path / "report.html").as_uri())
        browser.find_element(By.CSS_SELECTOR, "input[value=pool]").click()
        sample = take_sample(harsh)
        expected = pool_loss(sample.P, sample.y, pool.weights_, pool.bias_, pool.floor_)
        assert float(shown(browser, "loss")) == pytest.approx(expected, abs=6e-5)
        weights = pool.weights_.copy()
        weights[1] = 0.4
        slide(browser, 1, 0.4)
        expected = pool_loss(sample.P, sample.y, weights, pool.bias_, pool.floor_)
        assert float(shown(browser, "loss")) == pytest.approx(expected, abs=6e-5)

    def test_sliders_answer_the_keyboard(self, opened: webdriver.Chrome) -> None:
        slider = opened.find_element(By.ID, "w2")
        assert opened.find_element(By.CSS_SELECTOR, "label[for=w2]").text == "plain"
        before = shown(opened, "o2")
        slider.send_keys(Keys.HOME)
        assert shown(opened, "o2") == "0.000"
        slider.send_keys(Keys.ARROW_RIGHT)
        assert 0 < float(shown(opened, "o2")) <= 0.05
        opened.find_element(By.ID, "reset").send_keys(Keys.ENTER)
        assert shown(opened, "o2") == before

    def test_sliders_say_the_loss_too(self, opened: webdriver.Chrome) -> None:
        slide(opened, 2, 0.7)
        text = opened.find_element(By.ID, "w2").get_attribute("aria-valuetext")
        assert text == f"0.700, log-loss {shown(opened, 'loss')}"

    def test_map_answers_the_keyboard(self, opened: webdriver.Chrome) -> None:
        reached = opened.find_elements(By.CSS_SELECTOR, "#map polygon[tabindex='0']")
        assert len(reached) == 1  # the best cell alone is in the order of the Tab key
        assert reached[0].get_attribute("aria-label").startswith(shown(opened, "rangeText").split(" to ")[0])
        opened.execute_script("arguments[0].focus()", reached[0])
        for key in (Keys.ARROW_UP, Keys.ARROW_RIGHT):
            opened.switch_to.active_element.send_keys(key)
        moved = opened.switch_to.active_element
        assert moved.tag_name == "polygon"
        assert moved.get_attribute("tabindex") == "0"
        assert moved.id != reached[0].id
        moved.send_keys(Keys.ENTER)
        assert moved.get_attribute("aria-label").startswith(shown(opened, "loss"))
        assert not severe(opened)

    def test_map_of_any_three_members(self, opened: webdriver.Chrome, problem: Problem) -> None:
        sample = take_sample(problem)
        for corner, member in enumerate((3, 1, 0)):
            Select(opened.find_element(By.ID, f"pick{corner}")).select_by_value(str(member))
        found = ternary_map(sample.P, sample.y, (3, 1, 0))
        assert shown(opened, "bestText").startswith(f"{found['best_loss']:.4f} at ")
        assert shown(opened, "rangeText") == f"{found['loss'].min():.4f} to {found['loss'].max():.4f}"
        cells = opened.find_elements(By.CSS_SELECTOR, "#map polygon")
        assert (
            cells[17]
            .find_element(By.TAG_NAME, "title")
            .get_attribute("textContent")
            .startswith(f"{found['loss'][17]:.4f} at ")
        )
        opened.execute_script("arguments[0].dispatchEvent(new Event('click'))", cells[17])
        assert float(shown(opened, "loss")) == pytest.approx(found["loss"][17], abs=6e-5)
        assert not severe(opened)

    def test_hostile_text_stays_text(self, opened: webdriver.Chrome) -> None:
        assert opened.title == "Stack report"
        assert not opened.find_elements(By.CSS_SELECTOR, "img, iframe, object, link")
        assert len(opened.find_elements(By.TAG_NAME, "script")) == 2
        assert HOSTILE in opened.find_element(By.TAG_NAME, "main").get_attribute("textContent")
        assert opened.find_element(By.CSS_SELECTOR, "label[for=w0]").text.startswith("<script>") or (
            opened.find_element(By.CSS_SELECTOR, "label[for=w1]").text.startswith("<script>")
        )
        assert not severe(opened)

    def test_readable_at_400_pixels(self, opened: webdriver.Chrome) -> None:
        wide, inner = at_width(opened, 400)
        assert inner == 400
        assert wide <= inner
        wide, inner = at_width(opened, 1200)
        assert wide <= inner

    @pytest.mark.parametrize("members", [1, 2, 3, 12])
    def test_other_numbers_of_members(self, browser: webdriver.Chrome, members: int, tmp_path: Path) -> None:
        problem = simulate_problem(150, members, Classes(("yes", "no")))
        write_report(tmp_path / "report.html", problem, quick_result(problem))
        browser.get_log("browser")
        browser.get((tmp_path / "report.html").as_uri())
        slide(browser, 0, 0.9)
        weights = np.array(outputs(browser, members))
        assert weights[0] == (0.9 if members > 1 else 1)
        sample = take_sample(problem)
        expected = float(linear_losses(sample.P, sample.y, weights))
        assert float(shown(browser, "loss")) == pytest.approx(expected, abs=2e-3)
        wide, inner = at_width(browser, 400)
        assert wide <= inner
        assert not severe(browser)


def shown(browser: webdriver.Chrome, name: str) -> str:
    return browser.find_element(By.ID, name).text


def outputs(browser: webdriver.Chrome, members: int) -> list[float]:
    return [float(shown(browser, f"o{m}")) for m in range(members)]


def slide(browser: webdriver.Chrome, member: int, value: float) -> None:
    script = "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
    browser.execute_script(script + "s.dispatchEvent(new Event('input'))", f"w{member}", value)


def severe(browser: webdriver.Chrome) -> list[dict[str, object]]:
    return [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def at_width(browser: webdriver.Chrome, width: int) -> tuple[int, int]:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    found = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    return tuple(found)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    binary = next(filter(None, map(shutil.which, names)), None)
    if binary is None:
        pytest.skip("no Chromium found; install the Debian packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "disable-dev-shm-usage",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()
