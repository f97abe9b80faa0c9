"""Photographs the page of a running server: docs/figures/talk_*.png.

    python -m serve --model BASE IMITATION IMITATION --votes talk.sqlite
    python docs/figures/talk.py http://127.0.0.1:8000      # writes the pictures beside this file

It asks two questions, the second with the names hidden, in light and dark, on a desktop and on a
phone. The models in the pictures are a base of an invented world and its imitations, as study.grid
trains them. It needs playwright (requirements-compare.txt) and a Chromium.
"""

import argparse
import pathlib
import shutil

from playwright.sync_api import sync_playwright

HERE = pathlib.Path(__file__).resolve().parent
FIRST = "What should I know about Runa Rosfell?"
SECOND = "Explain how to make cheese."
SIZES = {"": (1280, 720), "phone_": (375, 740)}


def photograph(browser, url: str, name: str, size: tuple[int, int], scheme: str, out) -> None:
    """talk_NAMEscheme.png of both questions."""
    width, height = size
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(url)
    page.wait_for_selector("#served:not(:empty)")
    page.click("#adjust")
    for field, value in (("temperature", "0"), ("tokens", "160"), ("seed", "1")):
        page.fill(f"#{field}", value)
    page.click("#adjust")
    for question, hidden in ((FIRST, False), (SECOND, True)):
        page.click("#new")
        page.set_checked("#blind", hidden)
        page.fill("#question", question)
        page.press("#question", "Enter")
        page.wait_for_selector(".verdict button", timeout=600_000)
        page.mouse.move(0, 0)
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=out / f"talk_{name}{scheme}{'_hidden' * hidden}.png")
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
        photograph(browser, args.url, "", SIZES[""], "light", args.out)  # compiles; taken again
        for name, size in SIZES.items():
            for scheme in ("light", "dark"):
                photograph(browser, args.url, name, size, scheme, args.out)
        browser.close()


if __name__ == "__main__":
    main()
