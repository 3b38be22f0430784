"""Contact sheets of every view of every run of the gallery, and a table of what axe finds wrong.

`python tests/benchmarks/gallery.py FOLDER --pictures OUT` calls it.
"""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from PIL import Image, ImageDraw
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[2] / "dashboard"))

from interactions import FLAGS, WATCH

from gradscope_dashboard import start
from gradscope_dashboard.views import VIEWS

SIZES = {1440: 900, 390: 844}
ALL = ("sweep", "sixty")
"""Folders of which all runs are shown."""
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}


def take(
    folder: Path, out: Path, only: Sequence[str], themes: Sequence[str], sizes: Sequence[int] = ()
) -> None:
    """Take the pictures of the folders of runs in `folder`, and put them together by folder."""
    out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    faults: dict[tuple[str, str], list[int]] = {}
    kinds = [path for path in sorted(folder.iterdir()) if not only or path.name in only]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for kind in kinds:
            with start(kind) as server:
                for theme in themes:
                    for width in sizes or SIZES:
                        height = SIZES[width]
                        context = browser.new_context(
                            viewport={"width": width, "height": height},
                            color_scheme=theme,
                            bypass_csp=True,
                        )
                        page = context.new_page()
                        page.add_init_script(WATCH)
                        query = "?run=*" if kind.name in ALL else ""
                        page.goto(f"{server.url}{query}")
                        pictures = []
                        for what in _states(page):
                            path = out / f"{kind.name}-{what}-{theme}-{width}.png"
                            pictures.append(path)
                            found = faults.setdefault((kind.name, what), [])
                            found.append(_picture(page, path))
                        context.close()
                        name = out / f"{kind.name}-{theme}-{width}.png"
                        _sheet(pictures, width, 5).save(name)
                        print(name, flush=True)
        browser.close()
    _table(faults)


def _table(faults: dict[tuple[str, str], list[int]]) -> None:
    """Print how much axe finds wrong, over all themes and widths."""
    states = list(dict.fromkeys(state for _, state in faults))
    folders = list(dict.fromkeys(folder for folder, _ in faults))
    width = max(map(len, folders))
    print(f"\nBroken rules, in {max(map(len, faults.values()))} themes and widths each")
    print(" " * width, *states)
    for folder in folders:
        cells = (str(sum(faults[folder, s])) if (folder, s) in faults else "-" for s in states)
        row = (cell.rjust(len(state)) for cell, state in zip(cells, states, strict=True))
        print(folder.ljust(width), *row)


def _states(page: Page) -> Iterator[str]:
    """Bring the page to each of its states in turn, and yield what it is called."""
    page.locator("article, #cards").first.wait_for(timeout=60_000)
    page.wait_for_timeout(2500)
    page.get_by_role("button", name="Pause", exact=True).click()  # what polls is never done
    _settle(page, 500)
    for view in VIEWS:
        tab = page.locator("#tabs").get_by_role("button", name=view.LABEL, exact=True)
        if not tab.is_visible():
            yield "empty"
            return
        tab.click()
        if view.NAME == "net":
            page.locator("#net svg").first.wait_for(timeout=60_000)
        _settle(page, 500)
        yield view.NAME
    layer = page.locator("#layer-table td button").first
    if layer.count():
        layer.click()
        _settle(page, 500)
        yield "drawer"
        page.keyboard.press("Escape")
    findings = page.locator("article summary").first
    if findings.count():
        findings.click()
        _settle(page, 300)
        yield "findings"
    table = page.locator("#runs-panel > summary")
    if table.is_visible():
        table.click()
        _settle(page, 500)
        yield "runs"


def _settle(page: Page, least: int) -> None:
    page.wait_for_timeout(least)
    page.wait_for_function(
        "window.__open === 0 && performance.now() - window.__last > 250", timeout=60_000
    )


def _picture(page: Page, path: Path) -> int:
    """Take a picture, say what is wrong with the page, and return how many rules it breaks."""
    page.screenshot(path=path, full_page=True)
    found: Any = Axe().run(page, options=RULES).response["violations"]
    for fault in found:
        nodes = [node["html"][:160] for node in fault["nodes"][:2]]
        print(f"{path.stem}: {fault['id']} ({len(fault['nodes'])}): {nodes}", flush=True)
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    if wide > 0:
        print(f"{path.stem}: {wide} px wider than the window", flush=True)
    return len(found) + (wide > 0)


def _sheet(paths: Sequence[Path], width: int, columns: int) -> Image.Image:
    """Return the pictures side by side, what lies far below cut off."""
    scaled = 560 if width > 700 else 300
    columns = columns if width <= 700 else 3
    images = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        image = image.resize((scaled, round(image.height * scaled / image.width)))
        images.append(image.crop((0, 0, scaled, min(image.height, 720))))
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    heights = [max(image.height for image in row) + 16 for row in rows]
    sheet = Image.new("RGB", (columns * (scaled + 6), sum(heights)), "#808080")
    draw, top = ImageDraw.Draw(sheet), 0
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for place, image in enumerate(row):
            sheet.paste(image, (place * (scaled + 6), top + 14))
            draw.text(
                (place * (scaled + 6) + 3, top + 1), paths[number * columns + place].stem, "white"
            )
        top += height
    return sheet
