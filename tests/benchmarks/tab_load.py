"""How long the tab of TensorBoard takes with many runs: the first panel from the server, the first paint in Chromium.

    python tests/benchmarks/tab_load.py [--runs 50] [--steps 2000] [--loader true]

It writes two runs of 40 scalars and copies them, lets TensorBoard read them, and opens the tab four times in headless
Chromium (with its driver, and selenium). ``words`` is when those beside the first chart are there, ``chart`` when it is
drawn, both from the beginning of the tab's own page; the first time the browser has to compile plotly too.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import Request, urlopen

from selenium import webdriver
from tensorboard import default, program
from torch.utils.tensorboard import SummaryWriter

from lightning_info.tab.plugin import InfoTab

LAYERS = [f"net.{i}" for i in range(8)]
TAGS = [
    *("fisher/trace", "fisher/trace_stderr", "fisher/trace_low", "fisher/trace_high"),
    *("train_loss", "val_accuracy", "epoch", "stability/output_kl"),
    *(f"{kind}/{layer}" for kind in ("fisher_layers", "info_plane/I_XT", "info_plane/I_TY") for layer in LAYERS),
    *(f"info_plane_shuffled/I_TY/{layer}" for layer in LAYERS),
]
WATCH = """
window.seen = {};
new MutationObserver(() => {
  if (document.querySelector('.words h4')) window.seen.words ??= Math.round(performance.now());
  if (document.querySelector('.main-svg')) window.seen.chart ??= Math.round(performance.now());
}).observe(document, {childList: true, subtree: true});
"""


def write(folder: Path, runs: int, steps: int) -> None:
    for setting in range(2):
        first = folder / f"lr{setting}" / "seed0"
        with SummaryWriter(str(first), max_queue=100_000, flush_secs=1000) as writer:
            for step in range(steps):
                for i, tag in enumerate(TAGS):
                    value = 5 + setting + 0.1 * i + math.exp(-step / 300) + 0.1 * random.random()
                    writer.add_scalar(tag, step // 20 if tag == "epoch" else value, step)
        for seed in range(1, runs // 2):
            shutil.copytree(first, first.with_name(f"seed{seed}"))


def asked(address: str, path: str, body: object = None) -> tuple[float, dict]:
    started = time.perf_counter()
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(f"{address}data/plugin/lightning-info/{path}", data)) as answer:
        found = json.loads(answer.read())
    return time.perf_counter() - started, found


def painted(address: str) -> None:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1400,1200"):
        options.add_argument(f"--{argument}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    driver.execute_cdp_cmd("Page.enable", {})
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
    for _ in range(4):
        driver.get("about:blank")
        driver.get(f"{address}#lightning-info")
        driver.implicitly_wait(60)
        driver.switch_to.frame(driver.find_element("css selector", "iframe"))
        driver.find_element("css selector", "section[data-state=drawn] .main-svg")
        print(f"{driver.execute_script('return window.seen')} ms at load {os.getloadavg()[0]:.1f}")
        driver.switch_to.default_content()
    driver.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--loader", choices=("true", "false"), default="true")
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        write(Path(folder), given.runs, given.steps)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*tfevents*")) / 1e6
        plugins = [one for one in default.get_plugins() if getattr(one, "plugin_name", "") != InfoTab.plugin_name]
        board = program.TensorBoard(plugins=[*plugins, InfoTab])
        board.configure(logdir=folder, port=0, host="localhost", load_fast=given.loader)
        started, address = time.perf_counter(), board.launch()
        while len(runs := asked(address, "contents")[1]["runs"]) < given.runs // 2 * 2:
            time.sleep(1)
        print(f"{len(runs)} runs, {size:.0f} MB: listed after {time.perf_counter() - started:.0f} s")
        time.sleep(10)  # it goes on reading
        groups = {f"lr{i}": [run["name"] for run in runs if run["name"].startswith(f"lr{i}/")] for i in range(2)}
        for _ in range(3):
            seconds, _ = asked(address, "panel", {"view": "curves", "panel": "fisher/trace", "groups": groups})
            print(f"panel {seconds:.2f} s")
        painted(address)


if __name__ == "__main__":
    main()
