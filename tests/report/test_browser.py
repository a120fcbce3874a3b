"""The report in a real browser: drawn, silent, and it does what its controls say."""

from __future__ import annotations

import os
import shutil

import pytest

PLOTS = ("best-so-far", "front", "parallel", "curves", "timeline", "strip", "importance", "cost")


def _browser_or_reason():
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if all(programs):
        return programs, None
    return programs, "Chromium and its driver are needed (Debian: chromium, chromium-driver)"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A function that opens the report in a window of some size and colour scheme."""
    (chromium, chromedriver), missing = _browser_or_reason()
    if missing:
        if os.environ.get("AUTOTUNE_REQUIRE_CHROMIUM") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    selenium = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = selenium.Chrome(options=options, service=Service(chromedriver))
    driver.set_script_timeout(30)

    def open_page(report, width=1280, height=900, scheme="light"):
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        driver.get("about:blank")
        driver.get_log("browser")
        driver.get(report.as_uri())
        wait(driver, "return document.documentElement.dataset.drawn === 'true'")
        return driver

    yield open_page
    driver.quit()


def wait(driver, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 30, 0.1).until(lambda d: d.execute_script(condition))


@pytest.fixture
def page(start, report):
    driver = start(report)
    yield driver
    assert driver.get_log("browser") == []


def marks(driver, plot):
    """How much is drawn in a plot: paths of curves, points, bars and fills."""
    return driver.execute_script(
        "return document.querySelectorAll('#plot-' + arguments[0] + ' .trace path').length", plot
    )


def select(driver, identifier, value):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    Select(driver.find_element(By.ID, identifier)).select_by_value(value)


def titles(driver, plot):
    return driver.execute_script(
        "const p = document.getElementById('plot-' + arguments[0]);"
        "return [p.layout.xaxis.title.text, p.layout.yaxis.title.text]",
        plot,
    )


def test_every_plot_is_drawn(page, view):
    for plot in PLOTS:
        assert marks(page, plot) > 0, plot
    assert marks(page, "front") >= len(view.result.pareto)
    assert marks(page, "curves") >= len(view.trials)
    assert page.title == "digits – autotune report"


def test_nothing_hangs_over_the_edge(start, report):
    for width in (1280, 400):
        for scheme in ("light", "dark"):
            driver = start(report, width, 900, scheme)
            inner, scrolled = driver.execute_script(
                "return [innerWidth, document.documentElement.scrollWidth]"
            )
            assert inner == width
            assert scrolled <= width
            assert driver.execute_script(
                "return [...document.querySelectorAll('.plot')].every("
                "p => p.getBoundingClientRect().right <= innerWidth + 1)"
            )
            assert driver.get_log("browser") == []


def test_both_colour_schemes(start, report):
    background = "return getComputedStyle(document.body).backgroundColor"
    ink = "return document.getElementById('plot-front').layout.font.color"
    light = start(report, scheme="light")
    before = light.execute_script(background), light.execute_script(ink)
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    light.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    wait(light, f"return (() => {{ {ink} }})() !== '{before[1]}'")
    assert light.execute_script(background) != before[0]
    assert light.get_log("browser") == []


def test_navigation_marks_where_the_reader_is(page):
    from selenium.webdriver.common.by import By

    links = page.find_elements(By.CSS_SELECTOR, "nav a")
    assert len(links) == 10
    for link in [*links[1:], links[0]]:
        link.click()
        wait(
            page,
            f"return document.querySelector('nav a[aria-current]').hash === "
            f"'{link.get_property('hash')}'",
        )
        seen = page.execute_script(
            "const r = document.querySelector(arguments[0]).getBoundingClientRect();"
            "return r.top < innerHeight && r.bottom > 0",
            link.get_property("hash"),
        )
        assert seen


def test_the_keyboard_suffices(page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    body = page.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    assert page.switch_to.active_element.text == "Skip to the result"
    page.switch_to.active_element.send_keys(Keys.TAB)
    assert page.switch_to.active_element.get_property("hash") == "#summary"
    page.find_element(By.CSS_SELECTOR, "#trials th button").send_keys(Keys.ENTER)
    assert page.find_element(By.CSS_SELECTOR, "#trials th").get_attribute("aria-sort")
    outline = page.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_axes_of_the_front(page):
    assert titles(page, "front") == [
        "shifted accuracy  (higher is better)",
        "validation loss  (lower is better)",
    ]
    xs = "return document.getElementById('plot-front').data[1].x"
    before = page.execute_script(xs)
    select(page, "front-x", "latency_ms")
    select(page, "front-y", "trainable_parameters")
    assert titles(page, "front") == [
        "latency [ms]  (lower is better)",
        "trainable parameters  (lower is better)",
    ]
    assert page.execute_script(xs) != before
    assert page.execute_script(
        "return document.getElementById('plot-front').data[1].error_x.visible"
    )
    assert marks(page, "front") > 0


def test_colours_follow_the_chosen_kind(page, view):
    from selenium.webdriver.common.by import By

    def legend():
        return [li.text for li in page.find_elements(By.CSS_SELECTOR, "#legend li")]

    def colours():
        return set(
            page.execute_script("return document.getElementById('plot-front').data[1].marker.color")
        )

    select(page, "colour-by", "optimizer")
    assert legend() == ["adamw", "lion", "sgd"]
    select(page, "colour-by", "tta")
    assert legend() == ["lame", "none", "tent"]
    swatches = page.execute_script(
        "return [...document.querySelectorAll('#legend i')].map(i => i.style.background)"
    )
    assert len(set(swatches)) == 3
    shown = {p.configuration["tta"]["name"] for p in view.result.pareto}
    assert len(colours()) == len(shown)


def test_curves_by_metric_and_selection(page):
    visible = (
        "return document.getElementById('plot-curves').data"
        ".filter(t => t.meta.role === 'curve' && t.visible).length"
    )
    everything = page.execute_script(visible)
    select(page, "curve-show", "best")
    assert page.execute_script(visible) == 10
    select(page, "curve-show", "thawed")
    assert 0 < page.execute_script(visible) < everything
    select(page, "curve-show", "all")
    select(page, "curve-metric", "validation_accuracy")
    assert titles(page, "curves")[1] == "validation accuracy"
    highest = page.execute_script(
        "return Math.max(...document.getElementById('plot-curves').data"
        ".filter(t => t.meta.role === 'curve').flatMap(t => t.y))"
    )
    assert 0.5 < highest <= 1.0


def test_hover_tells_the_configuration(page):
    page.execute_script(
        "location.hash = '#front';Plotly.Fx.hover('plot-front', [{curveNumber: 1, pointNumber: 0}])"
    )
    wait(page, "return document.querySelector('#plot-front .hovertext') !== null")
    text = page.execute_script(
        "return document.querySelector('#plot-front .hovertext').textContent"
    )
    assert "trial" in text
    assert "optimizer.learning_rate" in text


def test_sorting_the_table_of_trials(page):
    from selenium.webdriver.common.by import By

    def column(index):
        return page.execute_script(
            "return [...document.querySelectorAll('#trials tbody tr')]"
            ".map(r => r.cells[arguments[0]].dataset.key)",
            index,
        )

    buttons = page.find_elements(By.CSS_SELECTOR, "#trials th button")
    numbers = [int(n) for n in column(0)]
    assert numbers == sorted(numbers)
    buttons[0].click()
    buttons[0].click()
    assert [int(n) for n in column(0)] == sorted(numbers, reverse=True)
    buttons[2].click()
    values = [float(v) for v in column(2) if v is not None]
    assert values == sorted(values)
    assert len(values) > 30
    head = page.find_elements(By.CSS_SELECTOR, "#trials th")
    assert [h.get_attribute("aria-sort") for h in head[:3]] == [None, None, "ascending"]


def test_what_users_wrote_does_not_run(page):
    assert "hacked" not in page.title
    assert page.execute_script("return document.images.length") == 0
    page.execute_script("Plotly.Fx.hover('plot-front', [{curveNumber: 0, pointNumber: 0}])")
    assert page.execute_script("return document.images.length") == 0


def test_a_study_just_begun_is_silent_too(start, tmp_path):
    import demo

    from autotune.report import write_report

    for count in (0, 3, 12):
        view = demo.write_study(tmp_path / str(count), demo.events()[:count], demo.header())
        driver = start(write_report(view, tmp_path / f"{count}.html"))
        assert driver.get_log("browser") == []
