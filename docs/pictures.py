"""Draw the pictures of README and docs anew, from runs of the current code.

    pip install -e ".[examples,tab,test]"
    python docs/pictures.py                         # all of them: ten minutes on two cores
    python docs/pictures.py tab_curves tab_report   # some
    python docs/pictures.py --runs FOLDER           # keeps the runs, and takes those that are there

Screenshots need Chromium and its driver (Debian: ``apt-get install chromium chromium-driver``). That of
``effective_information.png`` is drawn by ``examples/effective_information.py``, those of ``saxe`` by
``examples/saxe2018/all.py``.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard import default, program
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_info import FisherTraceCallback, InfoPlaneCallback, StabilityCallback, WeightInfoCallback
from lightning_info.__main__ import main as lightning_info
from lightning_info.tab.plugin import InfoTab

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"
sys.path.insert(0, str(DOCS.parent / "examples"))

from quickstart import DigitsNet, loaders  # noqa: E402

SEEDS = {0.05: (1, 2, 3, 4), 0.2: (0, 1, 2)}
"""Seeds of the runs that the tab is shown with, by learning rate."""
SIZE = 1500, 900
"""Of the browser's window."""


class SmallNet(DigitsNet):
    """The net of the quickstart, smaller, with hyperparameters."""

    def __init__(self, width: int = 12, lr: float = 0.05):
        super().__init__(width)
        self.save_hyperparameters()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)


class TanhNet(DigitsNet):
    """64-32-10 with tanh."""

    def __init__(self):
        super().__init__(1)
        self.features, self.head = nn.Identity(), nn.Identity()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))

    def forward(self, x):
        return self.net(x)


def fit(module: pl.LightningModule, epochs: int, callbacks: Sequence[pl.Callback], logger: Any = False) -> None:
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    run = pl.Trainer(max_epochs=epochs, callbacks=list(callbacks), logger=logger, log_every_n_steps=5, **options)
    run.fit(module, *loaders(64))


# ---- runs, once for all pictures of them


def quickstart(runs: Path) -> Path:
    """Folder of the quickstart's run."""
    if not (runs / "quickstart").exists():
        command = [sys.executable, str(DOCS.parent / "examples" / "quickstart.py"), "--logdir", str(runs)]
        subprocess.run(command, check=True)
    (found,) = (runs / "quickstart").iterdir()
    return found


def settings(runs: Path) -> Path:
    """Folder of seven runs with two learning rates."""
    folder = runs / "settings"
    for lr, seeds in SEEDS.items():
        for seed in seeds:
            if (folder / f"lr{lr}" / f"seed{seed}").exists():
                continue
            pl.seed_everything(seed, verbose=False)
            common = {"every_n_train_steps": 20, "summary": False}
            callbacks = [
                FisherTraceCallback(per_layer=True, also=["empirical"], **common),
                InfoPlaneCallback(**common),
                StabilityCallback(**common),
            ]
            fit(SmallNet(lr=lr), 8, callbacks, TensorBoardLogger(folder, name=f"lr{lr}", version=f"seed{seed}"))
    return folder


# ---- the browser


@contextmanager
def browser(*folders: Path) -> Iterator[tuple[Any, str]]:
    """A browser, and the address of a TensorBoard that shows the folders; empty for none."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in (
        "headless=new",
        "no-sandbox",
        "hide-scrollbars",
        "disable-dev-shm-usage",
        f"window-size={SIZE[0]},{SIZE[1]}",
    ):
        options.add_argument(f"--{argument}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    address = ""
    for folder in folders:
        plugins = [one for one in default.get_plugins() if getattr(one, "plugin_name", "") != InfoTab.plugin_name]
        board = program.TensorBoard(plugins=[*plugins, InfoTab])
        board.configure(logdir=str(folder), port=0, host="localhost", samples_per_plugin={"images": 100})
        address = board.launch()
    try:
        yield driver, address
    finally:
        driver.quit()


def until(found: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = found()
        if value:
            return value
        time.sleep(0.2)
    raise TimeoutError(f"in {seconds} seconds there was no {what}")


def views(runs: Path, names: Sequence[str]) -> None:
    """Screenshots of the tab: ``tab_<view>.png``."""
    with browser(settings(runs)) as (driver, address):
        driver.get(f"{address}data/plugin/lightning-info/contents")

        def is_read() -> bool:
            driver.refresh()
            return all(f"seed{seed}" in driver.page_source for seeds in SEEDS.values() for seed in seeds)

        until(is_read, "list of all runs")
        driver.get(f"{address}#lightning-info")
        (frame,) = until(lambda: driver.find_elements("css selector", "iframe"), "frame of the tab")
        driver.switch_to.frame(frame)
        for name in names:
            selector = f"button[data-view={name.removeprefix('tab_')}]"
            button = until(lambda s=selector: driver.find_elements("css selector", s), name)
            driver.execute_script("arguments[0].click()", button[0])
            until(lambda: driver.find_elements("css selector", "section[data-state=drawn] .main-svg"), "chart")
            time.sleep(3)  # until charts and fonts are at rest
            driver.switch_to.default_content()
            keep(driver.get_screenshot_as_png(), name)
            driver.switch_to.frame(frame)


def first_page_of_report(runs: Path) -> None:
    """Screenshot of a report from disk."""
    with tempfile.TemporaryDirectory() as folder, browser() as (driver, _):
        page = Path(folder, "report.html")
        lightning_info(["report", str(settings(runs)), "--out", str(page)])
        driver.get(page.as_uri())
        time.sleep(5)
        keep(driver.get_screenshot_as_png(), "tab_report")


DEEP = """
const found = [], look = root => root.querySelectorAll('*').forEach(one => {
  if (one.matches(arguments[0])) found.push(one);
  if (one.shadowRoot) look(one.shadowRoot);
});
look(document);
return found;
"""
"""Elements that a selector matches, inside of shadow roots too."""


def band(runs: Path) -> None:
    """The chart of the trace in the "Custom scalars" tab, with a logarithmic axis."""
    with browser(quickstart(runs)) as (driver, address):
        driver.set_window_size(1300, 1400)
        driver.get(f"{address}#custom_scalars")
        card = until(lambda: driver.execute_script(DEEP, "tf-custom-scalar-margin-chart-card"), "chart")[0]
        time.sleep(5)
        script = "return [...arguments[0].shadowRoot.querySelectorAll('paper-icon-button')]"
        icons = driver.execute_script(script, card)
        for button in icons[:2]:
            driver.execute_script("arguments[0].click()", button)  # the whole width, then the logarithmic axis
            time.sleep(3)
        keep(card.screenshot_as_png, "quickstart_band")


# ---- pictures


def logged_figure(runs: Path, tag: str, name: str) -> None:
    events = EventAccumulator(str(quickstart(runs)), size_guidance={"images": 0}).Reload()
    keep(events.Images(tag)[-1].encoded_image_string, name)


def rate_distortion(runs: Path) -> None:
    pl.seed_everything(0, verbose=False)
    weights = WeightInfoCallback(every_n_epochs=5, summary=False)
    fit(TanhNet(), 10, [weights])
    weights.plot().savefig(IMAGES / "rate_distortion.png")


def stability_paths(runs: Path) -> None:
    pl.seed_everything(0, verbose=False)
    folder = runs / "stability"
    twins = StabilityCallback(every_n_epochs=1, summary=False)
    fit(DigitsNet(), 30, [twins], TensorBoardLogger(folder, name="", version=""))
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    keep(events.Images("stability/paths")[-1].encoded_image_string, "stability_paths")


def keep(png: bytes, name: str) -> None:
    Image.open(io.BytesIO(png)).convert("RGB").save(IMAGES / f"{name}.png", optimize=True)
    print(f"{name}.png")


VIEWS = ("tab_curves", "tab_planes", "tab_comparison")
PICTURES: dict[str, Callable[[Path], None]] = {
    "quickstart_layers": lambda runs: logged_figure(runs, "fisher/layers", "quickstart_layers"),
    "quickstart_plane": lambda runs: logged_figure(runs, "info_plane/plane", "quickstart_plane"),
    "quickstart_band": band,
    "tab_report": first_page_of_report,
    "rate_distortion": rate_distortion,
    "stability_paths": stability_paths,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join((*VIEWS, *PICTURES))}")
    parser.add_argument("--runs", type=Path, help="folder of the runs; by default one that is deleted")
    arguments = parser.parse_args()
    wanted = arguments.names or [*VIEWS, *PICTURES]
    unknown = set(wanted) - {*VIEWS, *PICTURES}
    if unknown:
        parser.error(f"there is no picture {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as folder:
        runs = arguments.runs or Path(folder)
        if chosen := [name for name in VIEWS if name in wanted]:
            views(runs, chosen)
        for name in wanted:
            if name in PICTURES:
                PICTURES[name](runs)


if __name__ == "__main__":
    main()
