"""Take the pictures of these pages anew: `python docs/pictures.py GALLERY [NAME...]`.

GALLERY is a folder that `python tests/benchmarks/gallery.py GALLERY` has made; the cards of the
verdicts come from the code blocks of docs/verdicts.md, the moving picture from a training of two
nets. Needs Chromium and Pillow.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent / name) for name in ("", "dashboard", "tests/support")]

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.sync_api import Browser, sync_playwright  # noqa: E402

import code_blocks  # noqa: E402
import gradscope  # noqa: E402
import gradscope_dashboard  # noqa: E402
from examples import nets  # noqa: E402
from gradscope.plots.card import card_png, card_svg  # noqa: E402

PICTURES = DOCS / "pictures"
FRAMES, STEPS = 16, 6
"""Of the moving picture: how many, and how many steps lie between two."""
PAGE, CHART = "", "#view .chart"
VIEWS = {  # name -> folder of the gallery, address, height, and what of it is shown
    "depth_profile": ("pair", "", 800, PAGE),
    "net": ("pair", "?view=net", 960, PAGE),
    "flow_map": ("pair", "?view=flow", 860, PAGE),
    "layers_by_steps": ("pair", "?view=heatmap&theme=dark", 860, PAGE),
    "speed": ("pair", "?view=speed", 900, CHART),
    "why": ("pair", "?view=why&run=plain-50", 900, CHART),
    "training": ("pair", "?view=training", 900, CHART),
    "sweep_map": ("sweep", "?run=*&view=sweep", 900, CHART),
    "layers": ("pair", "?view=layers&rows=6", 1000, "#view"),
    "runs": ("sweep", "?run=*", 760, PAGE),
}


def small(picture: bytes, colours: int, width: int) -> Image.Image:
    """Return a picture with few colours, and no wider than `width`.

    Those that are rare change: not for views in which a colour means something.
    """
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image = image.resize(
        (width, round(image.height * width / image.width)), Image.Resampling.LANCZOS
    )
    return image.quantize(colours, dither=Image.Dither.NONE)


def shoot(browser: Browser, gallery: Path, name: str) -> bytes:
    """Return what the dashboard shows."""
    folder, address, height, part = VIEWS[name]
    with gradscope_dashboard.start(gallery / folder) as server:
        context = browser.new_context(viewport={"width": 1280, "height": height})
        page = context.new_page()
        page.goto(server.url + address)
        page.wait_for_timeout(8000)  # figures come one after the other
        if name == "runs":
            page.click("#runs-summary")
            page.wait_for_timeout(2000)
        page.mouse.move(5, 5)
        picture = page.locator(part).first.screenshot() if part else page.screenshot()
        context.close()
    return picture


def live(browser: Browser, folder: Path) -> list[Image.Image]:
    """Train a plain and a residual net in turn, and return what the page shows in between."""
    torch.manual_seed(1)
    prototypes = torch.randn(10, 64)
    trained = []
    for name, make in (("plain", nets.plain), ("residual", nets.residual)):
        torch.manual_seed(0)
        model = make(20, 32)
        scope = gradscope.watch(model, folder / name)
        trained.append((model, torch.optim.SGD(model.parameters(), lr=0.05), scope))
    frames: list[Image.Image] = []
    with gradscope_dashboard.start(folder) as server:
        page = browser.new_context(viewport={"width": 1100, "height": 900}).new_page()
        page.goto(server.url)
        for step in range(FRAMES * STEPS):
            y = torch.randint(0, 10, (32,))
            x = prototypes[y] + 0.5 * torch.randn(32, 64)
            for model, optimizer, scope in trained:
                if step == FRAMES * STEPS * 2 // 3:
                    optimizer.param_groups[0]["lr"] *= 0.3
                    scope.mark("lr cut")
                loss = torch.nn.functional.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                scope.log(train_loss=loss)
                optimizer.zero_grad()
            if (step + 1) % STEPS == 0:
                for _, _, scope in trained:
                    scope.flush()
                if step + 1 == FRAMES // 2 * STEPS:
                    page.get_by_role("button", name="Training", exact=True).click()
                page.get_by_text(f"training, step {step}").first.wait_for()
                page.wait_for_timeout(4000)  # figures come one after the other
                frames.append(small(page.screenshot(), 64, 880))
    for _, _, scope in trained:
        scope.close()
    return frames


def cards() -> Iterator[tuple[str, bytes]]:
    """Train the nets of docs/verdicts.md that are ill; yield each verdict's card."""
    names: dict[str, object] = {}
    for block in code_blocks.blocks(DOCS / "verdicts.md"):
        names.pop("ill", None)
        torch.manual_seed(0)
        block.run(names)
        run = names.pop("ill", None) or names.pop("run", None)
        if isinstance(run, gradscope.Run):
            yield block.heading, card_png(card_svg(run))


def main() -> None:
    """Take all of them, or those that are named."""
    parser = argparse.ArgumentParser(description="Take the pictures of the documentation anew.")
    parser.add_argument("gallery", type=Path)
    parser.add_argument("names", nargs="*", help="of views, `live` or `cards`; all by default")
    options = parser.parse_args()
    wanted = options.names or [*VIEWS, "live", "cards"]
    gallery = options.gallery.resolve()
    warnings.simplefilter("ignore")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--headless", "--no-sandbox", "--disable-gpu"],
        )
        for name in filter(VIEWS.get, wanted):
            picture = Image.open(io.BytesIO(shoot(browser, gallery, name))).convert("RGB")
            picture.save(PICTURES / f"{name}.png", optimize=True)
            print(name, picture.size)
        if "live" in wanted:
            with tempfile.TemporaryDirectory() as folder:
                frames = live(browser, Path(folder))
            durations = [800] * (len(frames) - 1) + [4000]
            frames[0].save(
                PICTURES / "live.gif", save_all=True, append_images=frames[1:], loop=0,
                duration=durations, optimize=True,
            )  # fmt: skip
            print("live", frames[0].size, len(frames))
        browser.close()
    if "cards" in wanted:
        (PICTURES / "verdicts").mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            for name, picture in cards():
                small(picture, 48, 800).save(PICTURES / "verdicts" / f"{name}.png", optimize=True)
                print(name)


if __name__ == "__main__":
    main()
