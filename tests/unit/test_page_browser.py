"""The HTML page in a real browser: no errors, no requests, and what a reader does with it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, console, open_page, requested
from run_directories import run_directory

from moesim.report import load_run, load_runs
from moesim.report.page import write_page
from moesim.report.runs import Run

pytest.importorskip("altair", reason="altair is in the html extra")
pytest.importorskip("vl_convert", reason="vl-convert-python is in the html extra")

HOSTILE = "</script><script>alert('x')</script> & <b>bold</b>"
SMALL: Any = {"steps": 8, "layers": 3, "requests": 8, "output_tokens": 5}


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as chrome:
        yield chrome


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run whose model and name are hostile texts."""
    folder = tmp_path_factory.mktemp("one") / "run"
    return load_run(run_directory(folder, summary={"name": HOSTILE, "model": HOSTILE}, **SMALL))


@pytest.fixture(scope="module")
def one(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "one.html"
    write_page(file, [run], "moesim report run --html")
    return file


@pytest.fixture(scope="module")
def sixty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of sixty runs: five policies at four sizes with three seeds."""
    folder = tmp_path_factory.mktemp("sixty")
    for policy in ("lru", "lfu", "fifo", "random", "min"):
        for slots in (2, 4, 8, 12):
            for seed in range(3):
                path = folder / f"{policy}-{slots}-{seed}"
                run_directory(path, policy=policy, slots_per_layer=slots, seed=seed, **SMALL)
    runs = load_runs(sorted(folder.iterdir()))
    assert len(runs) == 60
    file = folder / "sixty.html"
    write_page(file, runs, "moesim report sixty --html")
    return file


def column(driver: Any, table: str, place: int) -> list[str]:
    """Return the texts of a column, of the rows that are shown."""
    script = """
        const rows = [...document.getElementById(arguments[0]).tBodies[0].rows];
        return rows.filter((row) => !row.hidden).map((row) => row.cells[arguments[1]].textContent);
    """
    texts: list[str] = driver.execute_script(script, table, place)
    return texts


def head(driver: Any, table: str, title: str) -> Any:
    """Return the header button of a column."""
    buttons = driver.find_elements("css selector", f"#{table} thead button")
    return next(button for button in buttons if button.text == title)


def tooltip(driver: Any, mark: Any) -> str:
    """Point at a mark, and return what the tooltip says."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
    ActionChains(driver).move_to_element(mark).perform()
    shown = "return document.querySelector('#vg-tooltip-element.visible')?.textContent"
    return str(WebDriverWait(driver, 60).until(lambda each: each.execute_script(shown)))


def rows_of(driver: Any, plot: str) -> list[dict[str, Any]]:
    """Return the data of a plot that the page holds."""
    text = driver.execute_script("return document.getElementById('plots').textContent")
    found = json.loads(text)[plot]
    rows = [dict(zip(found["fields"], row, strict=True)) for row in found["rows"]]
    levels = found["levels"]
    return [{key: levels[key][value] if key in levels else value for key, value in row.items()}
            for row in rows]  # fmt: skip


@pytest.mark.parametrize("width", [1280, 400])
def test_pages_open_without_a_message_or_a_request_and_fit_the_window(
    driver: Any, one: Path, sixty: Path, width: int
) -> None:
    for file in (one, sixty):
        assert file.stat().st_size < 5_000_000
        open_page(driver, file, width=width)
        assert console(driver) == []
        assert requested(driver) == [file.as_uri()]
        plots = driver.find_elements("css selector", "figure[data-plot]")
        drawn = driver.find_elements("css selector", "figure[data-plot] svg")
        assert len(drawn) == len(plots) > 4
        across = "return document.documentElement.scrollWidth"
        assert driver.execute_script(across) <= width


def test_hostile_names_are_shown_as_text(driver: Any, one: Path) -> None:
    open_page(driver, one)
    assert HOSTILE in driver.find_element("css selector", "h1").text
    assert driver.find_elements("css selector", "h1 b") == []


def test_a_click_sorts_a_column_and_a_key_sorts_it_the_other_way(driver: Any, one: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(driver, one)
    button = head(driver, "requests-table", "E2E (ms)")
    place = driver.execute_script("return arguments[0].closest('th').cellIndex", button)
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()
    cells = [float(text) for text in column(driver, "requests-table", place)]
    assert cells == sorted(cells)
    assert len(set(cells)) > 2
    ends = [button.find_element("xpath", "..").get_attribute("aria-sort")]
    button.send_keys(Keys.ENTER)
    assert [float(text) for text in column(driver, "requests-table", place)] == cells[::-1]
    ends.append(button.find_element("xpath", "..").get_attribute("aria-sort"))
    assert ends == ["ascending", "descending"]
    sorted_by = driver.find_elements("css selector", "#requests-table th[aria-sort]")
    assert len(sorted_by) == 1


def test_a_filter_keeps_rows_with_all_words_and_says_how_many(driver: Any, sixty: Path) -> None:
    open_page(driver, sixty)
    box = driver.find_element("css selector", ".table[data-interactive]")
    field = box.find_element("css selector", "input[type=search]")
    assert len(column(driver, "points-table", 0)) == 20
    field.send_keys('lfu "4 of"')
    kept = list(zip(column(driver, "points-table", 0), column(driver, "points-table", 1),
                    strict=True))  # fmt: skip
    assert kept == [("LFU", "4 of 16 experts a layer")]
    assert box.find_element("css selector", "[role=status]").text == "1 of 20 rows"
    field.clear()
    field.send_keys("x")  # clearing alone sends no event
    field.send_keys("\ue003")  # backspace
    assert len(column(driver, "points-table", 0)) == 20


def test_pointing_at_a_mark_shows_its_number(driver: Any, one: Path) -> None:
    open_page(driver, one)
    bars = driver.find_elements("css selector", "#plot-hits .mark-rect path")
    told = tooltip(driver, max(bars, key=lambda bar: bar.size["height"]))
    rows = rows_of(driver, "plot-hits")
    found = [row for row in rows if f"outcome{row['outcome']}" in told.replace(": ", "")
             and f"{row['count']:,}" in told and f"{row['share']:.1%}" in told]  # fmt: skip
    assert found, told


def test_another_baseline_redraws_the_plot_and_its_table(driver: Any, sixty: Path) -> None:
    from selenium.webdriver.support.ui import Select, WebDriverWait

    open_page(driver, sixty)
    figure = driver.find_element("id", "plot-differences")
    before = column(driver, "plot-differences-data", 0)
    Select(figure.find_element("css selector", "[data-field=baseline]")).select_by_visible_text(
        "LRU"
    )
    title = "return document.querySelector('#plot-differences svg')?.textContent ?? ''"
    WebDriverWait(driver, 60).until(lambda each: "difference to LRU" in each.execute_script(title))
    after = column(driver, "plot-differences-data", 0)
    assert "LRU" in before
    assert "LRU" not in after
    rows = [row for row in rows_of(driver, "plot-differences") if row["baseline"] == "LRU"]
    first = {key: rows[0][key] for key in ("metric", "setting")}
    chosen = [row for row in rows if {key: row[key] for key in first} == first]
    assert column(driver, "plot-differences-data", 1) == [row["text"] for row in chosen]
    assert console(driver) == []


def test_a_dark_page_has_light_texts_also_in_plots(driver: Any, sixty: Path) -> None:
    open_page(driver, sixty, scheme="dark")
    script = """
        const at = (selector) => document.querySelector(selector);
        return [getComputedStyle(at("body")).backgroundColor, getComputedStyle(at("body")).color,
                getComputedStyle(at("#plot-front .role-axis-label text")).fill];
    """
    back, text, label = map(luminance, driver.execute_script(script))
    assert (text + 0.05) / (back + 0.05) > 7
    assert (label + 0.05) / (back + 0.05) > 7
    fills = "return [...document.querySelectorAll('#plot-front .mark-symbol path')].map((e) => " \
            "getComputedStyle(e).fill)"  # fmt: skip
    marks = [luminance(fill) for fill in set(driver.execute_script(fills)) if fill != "none"]
    assert len(marks) > 3
    assert all((mark + 0.05) / (back + 0.05) > 2.9 for mark in marks)
    assert console(driver) == []


def luminance(color: str) -> float:
    """Return the relative luminance of `rgb(r, g, b)`, as WCAG defines it."""
    parts = [int(each) / 255 for each in re.findall(r"\d+", color)[:3]]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_the_first_tab_stop_skips_to_the_results(driver: Any, one: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    open_page(driver, one)
    ActionChains(driver).send_keys(Keys.TAB).perform()
    focused = driver.switch_to.active_element
    assert focused.text == "Skip to the results"
    assert focused.rect["x"] >= 0
    ActionChains(driver).send_keys(Keys.ENTER).perform()
    assert driver.switch_to.active_element.get_attribute("id") == "main"


def test_a_printed_page_cuts_no_table_and_shows_no_control(driver: Any, one: Path) -> None:
    open_page(driver, one)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    script = """
        const shown = (selector) => [...document.querySelectorAll(selector)].filter(
          (each) => each.getClientRects().length > 0);
        const cut = [...document.querySelectorAll(".scroll")].filter(
          (each) => getComputedStyle(each).overflowX !== "visible");
        return [shown("nav, .filter, details.data").length, cut.length,
                shown("figure svg").length];
    """
    hidden, cut, plots = driver.execute_script(script)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    assert (hidden, cut) == (0, 0)
    assert plots > 4


def test_a_printed_page_says_what_its_reader_chose(driver: Any, sixty: Path) -> None:
    open_page(driver, sixty)
    driver.find_element("css selector", "input[type=search]").send_keys("LFU")
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    script = """
        const shown = [...document.querySelectorAll(".filter, .choices")].filter(
          (each) => each.getClientRects().length > 0);
        return shown.map((each) => each.innerText.replace(/\\s+/g, " ").trim());
    """
    shown = driver.execute_script(script)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    assert shown[0] == "Show rows with 4 of 20 rows"
    assert any("Setting" in each for each in shown[1:])
    assert sum("Show rows" in each for each in shown) == 1


def test_printing_unfolds_what_is_folded(driver: Any, one: Path) -> None:
    open_page(driver, one)
    folded = "return document.querySelectorAll('details.more:not([open])').length"
    assert driver.execute_script(folded) == 2
    driver.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert driver.execute_script(folded) == 0
    driver.execute_script("dispatchEvent(new Event('afterprint'))")
    assert driver.execute_script(folded) == 2
