"""How long the 3-D page of a case takes to open, in a headless Chromium that draws by the processor.

python -m tests.benchmarks.view_load PAGE [--phone] [-n 5] [--picture FILE]; a page is made by `kits-cascade view`.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from tests.report import browser

SIZES = {False: (1280, 800), True: (390, 844)}
STATE = "return document.body.dataset.state"
TIMES = """
const at = (name, kind) => performance.getEntriesByName(name, kind)[0]?.startTime ?? NaN;
return [at("first-contentful-paint", "paint"), at("slices", "mark"), at("ready", "mark")].map((ms) => ms / 1000);
"""


def load(page, phone, picture):
    with browser.browser(*SIZES[phone], phone=phone, webgl=True) as window:
        start = time.perf_counter()
        window.open(page.resolve().as_uri())
        while window.run(STATE) in ("loading", "slices"):
            time.sleep(0.05)
        assert window.run(STATE) == "ready", window.run("return document.querySelector('#message').textContent")
        window.screenshot(picture)  # waits for what has been drawn but not shown yet
        return [*window.run(TIMES), time.perf_counter() - start]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--phone", action="store_true")
    parser.add_argument("-n", type=int, default=5)
    parser.add_argument("--picture", type=Path, help="also a screenshot, as PNG")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        picture = given.picture or Path(folder) / "view.png"
        times = [load(given.page, given.phone, picture) for _ in range(given.n)]
    print(f"{given.page.stat().st_size / 1e6:.1f} MB, {'phone' if given.phone else 'desktop'}, {given.n} times")
    print("| seconds until | median | longest |")
    print("|---|---|---|")
    names = (
        "text can be read",
        "slices are handed to WebGL",
        "surfaces are, and the page answers",
        "a screenshot shows all",
    )
    for name, column in zip(names, zip(*times)):
        print(f"| {name} | {statistics.median(column):.2f} | {max(column):.2f} |")


if __name__ == "__main__":
    main()
