"""The tab in a real TensorBoard, and the report from disk, as a browser shows them."""

import shutil
import sys
import time

import pytest
from logs import values, write_run

from lightning_info.__main__ import main

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser: pip install selenium")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium and chromedriver here (Debian: apt-get install chromium-driver)"
)
PATIENCE = 30
EVIL = "<img src=x onerror=document.title='broken'><b>run</b>"
DRAWN = "section[data-state=drawn]"


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1400,1200"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for setting in ("a", "b"):
        for seed in range(2):
            write_run(folder / setting / f"seed{seed}", seed)
    write_run(folder / EVIL.replace("/", "&sol;"), curves={t.replace("net.0", EVIL): c for t, c in values().items()})
    return folder


@pytest.fixture(scope="module", params=["false", "true"])
def address(request, folder):
    """Of a TensorBoard that serves the runs, with its loader in Python and with the one that is the default."""
    from tensorboard import default, program

    from lightning_info.tab.plugin import InfoTab

    if request.param == "true" and sys.platform != "linux":
        pytest.skip("TensorBoard's data server runs on Linux only")
    plugins = [one for one in default.get_plugins() if getattr(one, "plugin_name", "") != InfoTab.plugin_name]
    board = program.TensorBoard(plugins=[*plugins, InfoTab])
    board.configure(logdir=str(folder), port=0, host="localhost", load_fast=request.param, reload_interval=1)
    return board.launch()


def until(found, what):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        value = found()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"in {PATIENCE} seconds there was no {what}")


def all_of(browser, selector):
    return browser.find_elements("css selector", selector)


@pytest.fixture
def tab(browser, address):
    """The tab with its first panel drawn, inside its frame."""
    browser.get("about:blank")
    browser.get_log("browser")

    def is_listed():
        browser.get(f"{address}data/plugin/lightning-info/contents")
        return browser.page_source.count("seed") >= 4

    until(is_listed, "run in the list of TensorBoard")
    browser.get(f"{address}#lightning-info")
    (frame,) = until(lambda: all_of(browser, "iframe"), "frame of the tab")
    browser.switch_to.frame(frame)
    until(lambda: all_of(browser, f"{DRAWN} .main-svg"), "chart")
    yield browser
    browser.switch_to.default_content()
    assert browser.title != "broken"
    errors = [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert not [line for line in errors if "lightning-info" in line or "Content Security Policy" in line]


def click(browser, selector):
    browser.execute_script("arguments[0].click()", browser.find_element("css selector", selector))


def choose(browser, view):
    click(browser, f"button[data-view={view}]")
    until(lambda: all_of(browser, DRAWN), f"panel of {view}")


def test_every_view_is_drawn(tab):
    views = [button.get_attribute("data-view") for button in all_of(tab, "nav button")]
    assert len(views) == 7
    for view in views:
        choose(tab, view)
        assert not all_of(tab, "section[data-state=failed]")
        assert all_of(tab, ".words h4")


def test_the_slider_moves_the_layers_and_hovering_tells_the_values(tab):
    choose(tab, "planes")
    until(lambda: all_of(tab, f"{DRAWN} .slider-grip-rect"), "slider")
    place = "return document.querySelector('.plot').data.filter(t => t.legendgroup && t.name).map(t => t.x[0])"
    last = tab.execute_script(place)
    rail = tab.find_element("css selector", ".slider-rail-touch-rect")
    across = -(rail.size["width"] // 2) + 2
    webdriver.ActionChains(tab).move_to_element_with_offset(rail, across, 0).click().perform()
    until(lambda: tab.execute_script(place) != last, "other place at the first stop")
    assert tab.execute_script(place)[:2] == [7.5, 4.0]
    tab.execute_script(
        "const plot = document.querySelector('.plot');"
        "const layer = plot.data.findIndex((trace) => trace.name && trace.legendgroup);"
        "Plotly.Fx.hover(plot, [{curveNumber: layer, pointNumber: 0}], 'xy')"
    )
    shown = until(lambda: [one.text for one in all_of(tab, ".hoverlayer .hovertext")], "text on hover")
    assert any("input" in text for text in shown)


def test_runs_are_grouped_and_chosen(tab):
    choose(tab, "curves")
    names = (
        "return [...document.querySelectorAll('section')[0].querySelectorAll('.legendtext')].map(e => e.textContent)"
    )
    until(lambda: len(tab.execute_script(names)) == 5, "run alone in the legend")
    tab.find_element("css selector", "select[name=way]").send_keys("by folder")
    until(lambda: "a" in tab.execute_script(names) and len(tab.execute_script(names)) == 3, "folder in the legend")
    field = tab.find_element("css selector", "input[name=filter]")
    field.send_keys("^a/\n")
    tab.execute_script("arguments[0].dispatchEvent(new Event('change'))", field)
    until(lambda: tab.execute_script("return document.querySelector('.plot')?.data?.length") is not None, "chart")
    traces = "return document.querySelector('.plot').data.map(t => t.name)"
    until(lambda: set(tab.execute_script(traces)) <= {"a", "train_loss", "val_accuracy"}, "chart of one group")


def test_both_axes_can_be_changed(tab):
    choose(tab, "curves")
    click(tab, "section input[name=log]")
    until(lambda: tab.execute_script("return document.querySelector('.plot').layout.yaxis.type") == "log", "log axis")
    click(tab, "section input[name=epochs]")
    last = "const t = document.querySelector('.plot').data.at(-1); return t.x.at(-1)"
    until(lambda: tab.execute_script(last) == 3.9, "epochs on the axis")


def test_no_button_sends_a_chart_anywhere(tab):
    choose(tab, "curves")
    titles = "return [...document.querySelectorAll('.modebar-btn')].map(e => e.dataset.title)"
    buttons = until(lambda: tab.execute_script(titles), "button above the chart")
    assert "Zoom" in buttons
    assert not [title for title in buttons if any(word in title.lower() for word in ("share", "cloud", "edit"))]
    assert not tab.execute_script("return document.querySelector('.plot')._context.plotlyServerURL")


def test_names_are_shown_letter_by_letter(tab):
    choose(tab, "verdicts")
    until(lambda: len(all_of(tab, "section[data-state]")) >= 2, "panels")
    assert not all_of(tab, "img[src=x]")
    assert "<b>run<" in tab.find_element("css selector", "main").text
    choose(tab, "curves")
    until(lambda: all_of(tab, ".legendtext"), "legend")
    shown = tab.execute_script("return [...document.querySelectorAll('.legendtext')].map(e => e.textContent).join()")
    assert "onerror" in shown or "<b>run<" in shown
    assert not all_of(tab, "img[src=x]")


def test_a_report_opens_from_disk_without_a_network(browser, folder, tmp_path):
    main(["report", str(folder), "--group", "^(a|b)", "--out", str(tmp_path / "report.html")])
    browser.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    try:
        browser.get_log("browser")
        browser.get((tmp_path / "report.html").as_uri())
        browser.execute_script("document.getElementById('view2')?.scrollIntoView()")
        until(lambda: all_of(browser, f"{DRAWN} table"), "table")
        browser.execute_script("document.getElementById('view2').scrollIntoView()")
        chart = until(
            lambda: browser.execute_script("return document.querySelector('.plot')?.data?.filter(t => t.name === 'a')"),
            "chart",
        )
        assert chart[-1]["y"] == pytest.approx([value + 0.5 for _, value in values()["fisher/trace"]], rel=1e-5)
        assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
        assert browser.title != "broken"
        assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    finally:
        browser.execute_cdp_cmd("Network.emulateNetworkConditions", {**offline, "offline": False})
