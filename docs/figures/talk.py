"""Photographs the page of a running server: docs/figures/talk_*.png.

    python -m serve --model BASE IMITATION TEACHER --votes /tmp/talk.sqlite --port 8000
    python docs/figures/talk.py http://127.0.0.1:8000      # writes the pictures beside this file

It asks a question twice, the second time with the names hidden, in light and dark, on a desktop and
on a phone. It needs playwright (requirements-compare.txt) and a Chromium.
"""

import argparse
import pathlib
import shutil

from playwright.sync_api import sync_playwright

HERE = pathlib.Path(__file__).resolve().parent
FIRST = "Give me three tips for staying healthy."
SECOND = "Which of them matters most?"
SIZES = {"": (1280, 900), "phone_": (375, 740)}


def photograph(browser, url: str, name: str, size: tuple[int, int], scheme: str, out) -> None:
    """talk_NAMEscheme.png of both questions."""
    width, height = size
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(url)
    page.wait_for_selector("#served:not(:empty)")
    page.click("#adjust")
    for field, value in (("temperature", "0.7"), ("tokens", "160"), ("seed", "1")):
        page.fill(f"#{field}", value)
    page.click("#adjust")
    for n, question in enumerate((FIRST, SECOND), 1):
        page.set_checked("#blind", n == 2)
        page.fill("#question", question)
        page.press("#question", "Enter")
        page.wait_for_selector(f".turn:nth-child({n}) .verdict button", timeout=600_000)
        page.locator(f".turn:nth-child({n})").scroll_into_view_if_needed()
        page.mouse.move(0, 0)
        page.evaluate("n => document.querySelectorAll('.turn')[n - 1].scrollIntoView()", n)
        page.screenshot(path=out / f"talk_{name}{scheme}{'_hidden' * (n - 1)}.png")
    page.close()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("url")
    p.add_argument("--out", type=pathlib.Path, default=HERE)
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for name, size in SIZES.items():
            for scheme in ("light", "dark"):
                photograph(browser, args.url, name, size, scheme, args.out)
        browser.close()


if __name__ == "__main__":
    main()
