"""The pictures: everything measured is drawn, distinguishable and explained; no name can break out of its place."""

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from autogreen.errors import ConfigError
from autogreen.front import Front
from autogreen.page import hover, html, write_page
from autogreen.picture import series, svg
from autogreen.results import Results
from autogreen.testing import scripted_evaluation, scripted_results

PLACES = ((0.0, 0.8), (0.004, 0.3), (0.02, 0.2), (0.05, 0.15), (0.03, 1.0), (0.0202, 0.202))
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\"'"
SPACE = "{http://www.w3.org/2000/svg}"


def results() -> Results:
    found = scripted_results(PLACES, noise=(0.001, 0.02))
    gated = replace(found.trials[0], number=6, state="gated", evaluation=scripted_evaluation(0.5, 0.1, status="gated"))
    return replace(found, trials=(*found.trials, gated))


def evil() -> Results:
    found = replace(results(), study=EVIL, task=EVIL, item=EVIL, boundary=EVIL, workload={EVIL: EVIL})
    found = replace(found, hardware={**found.hardware, "cpu": EVIL}, controls={EVIL: found.controls["scratch"]})
    trial = replace(found.trials[1], evaluation=scripted_evaluation(0.004, 0.3, name=EVIL))
    return replace(found, trials=(found.trials[0], trial, *found.trials[2:]))


def own(page: str) -> str:
    """The page without plotly.js itself."""
    return re.sub(r"<script[^>]*>/\*\*?\s*\n?\* plotly\.js.*?</script>", "", page, flags=re.DOTALL)


def test_every_kind_has_its_own_shape_and_gated_trials_no_place() -> None:
    kinds = series(Front.of(results()))
    assert [len(kind.points) for kind in kinds] == [1, 1, 1, 1, 1, 4]
    assert len({kind.symbol for kind in kinds}) == len(kinds)
    assert sum(kind.label.startswith("on the front") for kind in kinds) == 2


def test_the_page_stands_alone_and_says_what_it_shows() -> None:
    page = html(Front.of(results()))
    assert 3e6 < len(page) < 6e6
    text = own(page)
    assert len(text) < 60_000
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)
    assert "width=device-width" in text and '"responsive": true' in text
    assert "scripted: toy" in text and "energy estimated (scripted)" in text and "Scripted CPU" in text
    assert text.count('"error_x":{"array') == text.count('"error_y":{"array') == 6
    assert (
        "w8a8_static" in text
        and "of the baseline" in text
        and "qlinear (int8)" in text
        and "cannot be told from" in text
    )


def test_a_mark_tells_range_ties_and_test_figures() -> None:
    front = Front.of(results())
    lines = "\n".join(hover(front, front.members[1]))
    assert "200 µJ (196–204) per sample, estimated; 0.200 of the baseline's" in lines
    assert "the truth may lie from 98.0 µJ to 612 µJ" in lines
    assert "cannot be told from" in lines and "1 × qlinear (int8)" in lines
    measured = Front.of(scripted_results(PLACES, tier="measured"))
    assert not any("may lie" in line for line in hover(measured, measured.members[0]))


def test_latency_has_a_picture_of_its_own_where_it_is_an_objective() -> None:
    from autogreen.picture import Picture, heights

    found = Front.of(scripted_results([(0.0, 0.9, 0.010), (0.0, 1.7, 0.006)]))
    page_ = html(found)
    assert page_.count("Plotly.newPlot") == 2 and page_.count("plotly.js v") == 1
    assert "latency of a call" in page_ and 'id="latency"' in page_
    drawn = Picture.of(found, heights(found)["latency"]).svg()
    assert "latency of a call" in drawn and "10 ms" in drawn.replace("10.0 ms", "10 ms")
    assert len(heights(Front.of(scripted_results([(0.0, 0.9)])))) == 1


def test_names_cannot_inject() -> None:
    page = own(html(Front.of(evil())))
    assert "<img" not in page and "alert(1)</script>" not in page and "<script>alert" not in page
    data = page[page.index("Plotly.newPlot") :]
    assert "\\u0026lt;img" in data or "&lt;img" in data
    picture = svg(Front.of(evil()))
    assert "<img" not in picture and "<script" not in picture
    ElementTree.fromstring(picture)


def test_the_svg_draws_every_mark_bar_and_label() -> None:
    root = ElementTree.fromstring(svg(Front.of(results())))
    texts = ["".join(node.itertext()) for node in root.iter(f"{SPACE}text")]
    for said in ("baseline", "plain use", "scratch", "0.15×", "0.30×", "energy per sample, estimated", "200 µJ"):
        assert said in texts or said in " ".join(texts), said
    assert not list(root.iter(f"{SPACE}script")) and "href" not in svg(Front.of(results()))
    assert len(list(root.iter(f"{SPACE}circle"))) == 5 + 2  # marks, and their two entries in the legend
    bars = [node for node in root.iter(f"{SPACE}path") if node.get("stroke-opacity")]
    assert len(bars) == 9
    width, height = map(float, (root.get("viewBox") or "").split()[2:])
    for node in root.iter(f"{SPACE}circle"):
        assert 0 < float(node.get("cx", "")) < width and 0 < float(node.get("cy", "")) < height


@pytest.mark.parametrize("places", [(), ((0.0, 1.0),), ((0.0, 1e-6), (0.01, 1e-7)), ((0.9, 500.0), (0.001, 0.5))])
def test_odd_fronts_are_drawn_too(places: tuple[tuple[float, float], ...]) -> None:
    found = replace(scripted_results(places, noise=(0.0, 0.0)), controls={})
    ElementTree.fromstring(svg(Front.of(found)))
    alone = replace(found, plain=replace(found.plain, measurement=None))
    assert "nan" not in svg(Front.of(alone))
    json.dumps(Front.of(alone).to_json(), allow_nan=False)


def test_write_page_leaves_no_half_file_and_one_clear_message(tmp_path: Path) -> None:
    front = Front.of(results())
    write_page(front, tmp_path / "new" / "front.html")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["front.html"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written to .*front\.html"):
        write_page(front, tmp_path / "file" / "front.html")
    with pytest.raises(ConfigError, match="Name another file"):
        write_page(front, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "new"]


def test_a_page_of_thousands_stays_small_and_says_what_it_leaves_out() -> None:
    dominated = [(0.04 + 0.00001 * n, 0.9 + 0.0001 * n) for n in range(4900)]
    front = Front.of(scripted_results([(0.0008 * n, 0.98**n) for n in range(100)] + dominated))
    page = html(front)
    assert len(page) < 6e6 and len(svg(front)) < 1.5e6
    assert f"Of the {len(front.others)} that are not on the front only name and place are told" in page
    for point in (*front.members, *front.others[::500]):
        assert point.name in page
