"""The report: it tells what is known and no more, stands alone, and reads on a desk, on a phone and on paper."""

import base64
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from autogreen.errors import ConfigError
from autogreen.evaluation import Evaluation
from autogreen.experiment import from_json
from autogreen.front import Front
from autogreen.layerwork import LayerWork
from autogreen.policy import Effect
from autogreen.report import html, sides, write
from autogreen.report.joules import Spent
from autogreen.report.layers import LETTERS, REMOVED, Cell, cells, names
from autogreen.results import Results
from autogreen.schema import parse_yaml
from autogreen.sides import Sides
from autogreen.techniques.quantization.schemes import SCHEMES
from autogreen.testing import scripted_results

PLACES = ((0.0, 0.8), (0.004, 0.3), (0.02, 0.2), (0.05, 0.15), (0.03, 1.0))
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\"' http://evil.example/"
EXPERIMENT = {
    "name": "scripted",
    "task": {"digits": {"width": 16}},
    "space": {"quantization": [{"target": "*", "scheme": "w8a8_static"}], "runtime": {"engine": "inductor"}},
    "protocol": {"window_s": 0.5},
    "carbon": None,
    "seed": 3,
}


def treated(found: Results, layers: int = 4, seed: int = 0) -> Results:
    """The same results of a model of so many layers: each trial's last is pruned to half and in int8, and all know
    their time."""
    chance = random.Random(seed)
    blocks = [f"model.blocks.{number // 4}.conv{number % 4}" for number in range(layers)]

    def working(evaluation: Evaluation, kept: dict[str, float]) -> Evaluation:
        work = {
            name: LayerWork(
                width=round(64 * kept.get(name, 1)), macs=round(1e6 * kept.get(name, 1)), time_share=0.9 / layers
            )
            for name in blocks
        }
        parts = {**evaluation.effect.parts, "quantization": dict.fromkeys(kept, "w8a8_static")}
        effect = Effect.of({**parts, "pruning": {"channel": {evaluation.key: {"width": 1, "of": 2}}}}) if kept else None
        return replace(evaluation, layer_work=work, effect=effect or evaluation.effect)

    trials = tuple(
        replace(
            trial,
            policy={"quantization": [{"target": name, "scheme": "w8a8_static"} for name in blocks]},
            evaluation=working(trial.evaluation, dict.fromkeys(chance.sample(blocks, max(1, layers // 2)), 0.5)),
        )
        for trial in found.trials
        if trial.evaluation is not None
    )
    return replace(found, trials=trials, baseline=working(found.baseline, {}), experiment=EXPERIMENT)


def text(page: str) -> str:
    """What a reader sees, in one line."""
    shown = re.sub(r"<[^>]*>", " ", re.sub(r"<(style|title)>.*?</\1>", "", page, flags=re.DOTALL))
    return unescape(re.sub(r"\s+", " ", shown))


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


# --- what it says -----------------------------------------------------------------------------------------------------


def test_it_tells_front_bill_references_machine_method_and_how_to_have_it_again() -> None:
    front = Front.of(treated(scripted_results(PLACES, noise=(0.001, 0.02))))
    said = text(html(front))
    for heading in ("The front", "What each policy does to each layer", "Where the joules go", "What the search cost"):
        assert heading in said
    assert "takes 70 % less energy than the uncompressed model in its best runtime (estimated)" in said
    assert "300 µJ (294–306)" in said and "paid back after 1,290,000 samples" in said  # 900 J / 0.7 mJ
    assert "training" in said and "540 J" in said and "60 %" in said
    for name in ("baseline", "plain use", "scratch", "Scripted CPU", "AVX512", "in windows of at least 0.5 s"):
        assert name in said
    assert f"autogreen export scripted --pick {front.pick('knee').id} --to bundle" in said
    assert all(point.id in said for point in front.members)


def test_the_experiment_in_it_is_one_again() -> None:
    page = html(Front.of(treated(scripted_results(PLACES))))
    written = re.search(r"The experiment, as resolved</summary><pre>(.*?)</pre>", page, re.DOTALL)
    assert written is not None
    loaded = from_json(parse_yaml(unescape(written[1]), "the page"), name="again", folder=Path())
    assert loaded.task_text == "digits(width=16)" and loaded.seed == 3 and loaded.protocol.window_s == 0.5


@pytest.mark.parametrize("tier", ["measured", "integrated", "estimated"])
def test_the_tier_stands_with_every_figure_of_energy(tier: Any) -> None:
    said = text(html(Front.of(treated(scripted_results(PLACES, tier=tier)))))
    assert said.count(tier) >= 9
    assert ("possible:" in said) == (tier == "estimated") == ("estimated, not measured" in said)


def test_no_more_is_said_than_intervals_bear_out() -> None:
    said = text(html(Front.of(scripted_results([(0.001, 0.99)], noise=(0.002, 0.05)))))
    assert "takes as much energy, as far as its interval tells" in said
    assert "loses no quality that its examples show (at most 0.0030)" in said


def test_a_control_that_beats_members_stands_above_the_front() -> None:
    found = scripted_results([(0.04, 1.4), (0.0, 1.45)])
    front = Front.of(found)
    page = html(front)
    assert front.verdicts() and page.index('class="warning"') < page.index("<h2>")


def test_an_empty_front_and_one_without_layers_are_told() -> None:
    infeasible = scripted_results([(0.0, 0.5)])
    none = replace(infeasible, trials=tuple(replace(trial, feasible=False) for trial in infeasible.trials))
    said = text(html(Front.of(none)))
    assert "the front is empty" in said and "What the search cost" in said and "Where the joules" not in said
    assert "Not known: no layer's time was seen" in text(html(Front.of(scripted_results(PLACES))))


# --- layers -----------------------------------------------------------------------------------------------------------


def done(effect: dict[str, Any], work: dict[str, LayerWork], before: dict[str, LayerWork]) -> dict[str, Cell]:
    found = scripted_results([(0.0, 0.5)])
    (trial,) = found.trials
    assert trial.evaluation is not None
    evaluation = replace(
        trial.evaluation, effect=Effect.of({**effect, "runtime": {"engine": "eager"}}), layer_work=work
    )
    found = replace(
        found, trials=(replace(trial, evaluation=evaluation),), baseline=replace(found.baseline, layer_work=before)
    )
    (point,) = Front.of(found).members
    return cells(point, found.baseline)


def test_a_cell_tells_what_is_left_of_the_layer_and_what_it_computes_in() -> None:
    before = {name: LayerWork(width=64, macs=1000) for name in "abcde"}
    work = {
        "a": LayerWork(width=64, macs=1000),
        "b": LayerWork(width=32, macs=500),
        "c": LayerWork(width=64, macs=80),  # its inputs went
        "e": LayerWork(width=64, macs=1000),
    }
    effect = {
        "quantization": {"b": "w8a8_static+percentile", "a": "bf16", "e": "mine"},
        "pruning": {"weight": {"e": {"sparsity": 0.6, "importance": "magnitude"}}, "n:m": {"a": {}}},
    }
    found = done(effect, work, before)
    assert found["b"] == Cell(gone=0.5, words="32 of 64 wide, 50 % of its work left", scheme="w8a8_static+percentile")
    assert (found["b"].shade, found["b"].letters) == (3, "8")
    assert (found["c"].shade, found["c"].letters) == (5, "")
    assert (found["d"].words, found["d"].letters, found["d"].shade) == (REMOVED, "×", 5)
    assert (found["e"].letters, found["e"].told) == ("mi*", "mine, 60 % of its weights are 0")
    assert (found["a"].letters, found["a"].shade) == ("b*", 0)


def test_layers_that_no_scheme_names_compute_in_the_precision_of_the_rest() -> None:
    work = {name: LayerWork(width=64, macs=1000) for name in "ab"}
    found = done({"quantization": {"a": "w8a8_static"}, "precision": {"dtype": "bf16"}}, work, work)
    assert {name: cell.letters for name, cell in found.items()} == {"a": "8", "b": "b"}


def test_every_scheme_has_letters_of_its_own() -> None:
    assert set(LETTERS) == set(SCHEMES) - {"none"} and len(set(LETTERS.values())) == len(LETTERS)


def test_of_an_older_study_the_map_shows_what_policies_name() -> None:
    found = done({"pruning": {"channel": {"a": {"width": 24, "of": 32}}}}, {}, {})
    assert found == {"a": Cell(gone=0.25, words="24 of 32 wide")}


def test_layers_stand_in_the_order_of_the_model() -> None:
    found = scripted_results(PLACES)
    front = Front.of(found)
    assert set(names(found.baseline, front.members)) == {f"layer{number}" for number in range(len(front.members))}
    front = Front.of(treated(found, layers=12))
    assert names(front.results.baseline, front.members) == list(front.baseline.evaluation.layer_work)


def test_joules_of_layers_and_of_everything_else_are_all_joules() -> None:
    front = Front.of(treated(scripted_results(PLACES)))
    spent = Spent.of(front.baseline)
    assert spent is not None and spent.rest_j == pytest.approx(1e-4)
    assert list(spent.layers.values()) == pytest.approx([0.225e-3] * 4)  # 0.9 / 4 of 1 mJ
    said = text(html(front))
    assert said.count("225 µJ") == 4 and "everything else" in said


def test_a_layer_that_the_profile_does_not_show_is_said_to_be_unseen_and_not_to_cost_nothing() -> None:
    found = treated(scripted_results(PLACES))
    knee = Front.of(found).pick("knee").id
    trials = []
    for trial in found.trials:
        assert trial.evaluation is not None
        work = dict(trial.evaluation.layer_work)
        if trial.evaluation.effect.id == knee:
            (first, one), (second, _), *_ = work.items()
            work[first] = one._replace(time_share=None)
            del work[second]  # pruned as a whole
        trials.append(replace(trial, evaluation=replace(trial.evaluation, layer_work=work)))
    front = Front.of(replace(found, trials=tuple(trials)))
    spent = Spent.of(front.pick("knee"))
    assert spent is not None and spent.layers["model.blocks.0.conv0"] is None
    assert spent.rest_j == pytest.approx((1 - 0.45) * front.pick("knee").energy_per_item_j.mean)
    said = text(html(front))
    assert "model.blocks.0.conv0 225 µJ not seen alone" in said and "model.blocks.0.conv1 225 µJ 0 J" in said


# --- it stands alone --------------------------------------------------------------------------------------------------


def evil() -> Results:
    found = treated(scripted_results(PLACES))
    found = replace(found, study=EVIL, task=EVIL, item=EVIL, boundary=EVIL, workload={EVIL: EVIL})
    assert found.baseline.measurement is not None
    warned = replace(found.baseline, measurement=replace(found.baseline.measurement, warnings=(EVIL,)))
    work = {f"{EVIL}.{name}": work for name, work in found.baseline.layer_work.items()}
    trials = tuple(
        replace(trial, policy={EVIL: [{"target": EVIL}]}, evaluation=replace(trial.evaluation, layer_work=work))
        for trial in found.trials
        if trial.evaluation
    )
    return replace(
        found,
        baseline=replace(warned, layer_work=work),
        trials=trials,
        hardware={**found.hardware, "cpu": EVIL, EVIL: EVIL},
        controls={EVIL: found.controls["scratch"]},
        experiment={**EXPERIMENT, "task": EVIL, EVIL: EVIL},
    )


@pytest.mark.parametrize("found", [evil(), treated(scripted_results(PLACES)), scripted_results(PLACES)])
def test_nothing_runs_and_no_address_is_asked_whatever_names_say(found: Results) -> None:
    page = html(Front.of(found))
    parsed = Tags()
    parsed.feed(page)
    assert parsed.open == []
    assert not {tag for tag, _ in parsed.seen} & {
        "script",
        "img",
        "iframe",
        "link",
        "object",
        "embed",
        "base",
        "form",
        "a",
    }
    for _, attributes in parsed.seen:
        assert not any(name.startswith("on") for name in attributes)
        assert not {"src", "href", "xlink:href", "srcset", "action", "background"} & set(attributes)
        assert "url(" not in (attributes.get("style") or "")
    style = re.search("<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None and not re.search("url|@import|http", style[1])
    assert "default-src 'none'" in page


def test_it_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    front = Front.of(scripted_results(PLACES))
    write(front, tmp_path / "new" / "report.html")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Name another file"):
        write(front, tmp_path / "file" / "report.html")


@pytest.fixture(scope="module")
def large() -> str:
    """5,000 trials of 200 layers; more of them are on the front than a page shows."""
    chance = random.Random(1)
    places = [(chance.uniform(0, 0.05), 0.0) for _ in range(5000)]
    places = [(loss, 0.3 + 0.5 * (1 - loss / 0.05) + chance.uniform(0, 0.5) ** 2) for loss, _ in places]
    return html(Front.of(treated(scripted_results(places, noise=(0.002, 0.05)), layers=200)))


def test_five_thousand_trials_of_two_hundred_layers_are_a_small_page(large: str) -> None:
    assert len(large.encode()) < 3e6
    assert large.count('class="map"') == 3 and large.count("<tr") > 600
    assert "more members, which these stand for" in large


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-gpu")
    for argument in ("--headless=new", "--no-sandbox", *quiet, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver") or ""))
    yield driver
    driver.quit()


def shown(browser: Any, page: str, folder: Path, width: int) -> None:
    (folder / "report.html").write_text(page)
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(f"file://{folder / 'report.html'}")


@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_it_without_errors_and_without_scrolling_sideways(
    browser: Any, large: str, tmp_path: Path, width: int
) -> None:
    front = Front.of(evil())
    for page in (large, html(front), sides.html(Sides.of(front, front))):
        shown(browser, page, tmp_path, width)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert browser.get_log("browser") == []
        seen = [box for box in browser.find_elements("css selector", "figure svg") if box.is_displayed()]
        assert len(seen) == 1  # the picture for this width
    shown(browser, large, tmp_path, width)
    stuck = browser.execute_script(
        "const box = document.querySelector('.map').parentElement, head = box.querySelector('tbody th');"
        "box.scrollLeft = 200; return [box.scrollLeft, head.getBoundingClientRect().left]"
    )
    assert stuck[1] >= 0  # the names of layers stay in view


def test_on_paper_nothing_is_cut(browser: Any, large: str, tmp_path: Path) -> None:
    shown(browser, large, tmp_path, 688)  # A4 within margins of 14 mm, in pixels of 1/96 inch
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        cut = browser.execute_script(
            "return [...document.querySelectorAll('.box, pre, figure')]"
            ".filter(box => box.scrollWidth > box.clientWidth + 1).map(box => box.outerHTML.slice(0, 200))"
        )
        assert cut == []
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    printed = browser.execute_cdp_cmd(
        "Page.printToPDF", {"printBackground": True, "paperWidth": 8.27, "paperHeight": 11.69}
    )
    pdf = base64.b64decode(printed["data"])
    assert pdf.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", pdf)) > 5
