"""Pictures of the built site in a real browser, wide and narrow, light and dark, and what is wrong on any page.

    python -m sphinx -W -c docs . build/site && python docs/screenshots.py [folder]

Needs Playwright (`pip install playwright`) and a Chromium, the system's or Playwright's own. Every page is opened
without a network and measured: pages wider than the window, formulas that are not set, images that do not load and
errors of scripts are printed, and the exit status is 1 if there are any. Pictures of some pages go to `folder`.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

SITE = Path(__file__).parents[1] / "build" / "site"
SHOWN = {
    "home": "docs/index.html",
    "started": "docs/getting_started.html",
    "gallery": "docs/gallery.html",
    "notebook": "examples/05_which_model.html",
    "edge": "examples/11_beyond_the_edge.html",
    "api": "docs/reference/runs.html#slowsde.simulate",
    "theory": "docs/theory.html",
    "faq": "docs/faq.html",
    "search": "search.html?q=ManifoldError",
}
WINDOWS = {"desktop": (1280, 900), "phone": (390, 844)}
FAULTS = """() => {
    const wide = document.documentElement.scrollWidth - window.innerWidth;
    const broken = [...document.images].filter(i => i.complete && i.naturalWidth === 0).map(i => i.src);
    const unset = document.querySelectorAll('mjx-merror, [data-mjx-error]').length;
    const math = document.querySelectorAll('.math').length, set = document.querySelectorAll('mjx-container').length;
    return [wide > 1 ? `${wide} px wider than the window` : '', ...broken.map(s => `no image ${s}`),
            unset ? `${unset} formulas with errors` : '', math && !set ? 'formulas are not set' : ''].filter(Boolean);
}"""


def opened(page: Page, address: str) -> list[str]:
    """Opens an address, waits for its formulas, and returns what is wrong with it."""
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"file://{SITE}/{address}")
    page.evaluate("async () => { if (window.MathJax && MathJax.startup) await MathJax.startup.promise; }")
    page.evaluate("() => document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
    page.wait_for_load_state("networkidle")
    return errors + page.evaluate(FAULTS)


def photograph(browser: Any, folder: Path) -> None:
    """The chosen pages in every window and both colours."""
    for window, (width, height) in WINDOWS.items():
        for colours in ("light", "dark"):
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=colours, device_scale_factor=1.5
            )
            for name, address in SHOWN.items():
                page = context.new_page()
                opened(page, address)
                page.wait_for_timeout(500 if name == "search" else 100)
                page.screenshot(path=folder / f"{name}-{window}-{colours}.png")
                page.close()
            context.close()


def faults(browser: Any) -> list[str]:
    """What is wrong on any page in any window."""
    everything = (p.relative_to(SITE) for p in SITE.rglob("*.html"))
    # Neither sources nor the page that leads to the home page.
    pages = sorted(p.as_posix() for p in everything if p.parts[0] in ("docs", "examples") or p.stem == "search")
    found = []
    for window, (width, height) in WINDOWS.items():
        context = browser.new_context(viewport={"width": width, "height": height}, offline=True)
        for address in pages:
            page = context.new_page()
            found += [f"{address} ({window}): {fault}" for fault in opened(page, address)]
            page.close()
        context.close()
    print(f"{len(pages)} pages in {len(WINDOWS)} windows, {len(found)} faults")
    return found


def main(arguments: list[str]) -> int:
    """0 where every page is as it should be."""
    folder = Path(arguments[0] if arguments else SITE.parent / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    system = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=system, args=["--no-sandbox"])
        photograph(browser, folder)
        found = faults(browser)
        browser.close()
    print(*found, sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
