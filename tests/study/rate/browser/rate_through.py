"""Three browsers rate 20 items at once: by keyboard, by mouse in the dark, on a phone's width.

Run by hand, since it needs a Chromium on the machine:

    python tests/study/rate/browser/rate_through.py --chromium /usr/bin/chromium --out out/browser

It takes about a minute and needs playwright (requirements-compare.txt).

Checks what HTTP alone cannot: that no script of an answer runs and no image of it is fetched, that
the keys work, that closing a page gives its item back, that the page's whole traffic names no
model, that nothing is wider than a phone. Screenshots at desktop and phone width go to --out. Left
out: other browsers.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time

from playwright.sync_api import sync_playwright

ROOT = pathlib.Path(__file__).resolve().parents[4]
sys.path.insert(0, str(ROOT))
from web.votes import Store  # noqa: E402

NASTY = (
    "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'>\n\n"
    "![pixel](http://127.0.0.1:9/p.png) [click](javascript:window.ran=3)\n\n"
    "1. **first** point\n2. second `code`\n\n```python\ndef f(x):\n    return '<b>' + x + "
    + "'long ' * 20 + " * 6
    + "''\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
)


def write(path, name, text):
    path.write_text(
        json.dumps(
            [
                {
                    "instruction": f"Question {i}: what is a mynah, and why does it talk?",
                    "output": text.replace("point", f"point of {i}"),
                    "generator": name,
                }
                for i in range(20)
            ]
        )
    )
    return str(path)


def rate(port, n, chromium, out, wrong, traffic):
    """One rater in a browser of its own until all is done."""
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": 375, "height": 740} if n == 2 else {"width": 1280, "height": 900},
            color_scheme="dark" if n == 1 else "light",
        )
        page.on("pageerror", lambda error: wrong.append(f"page error {error}"))
        page.on(
            "console",
            lambda m: (
                m.type == "error" and "401" not in m.text and wrong.append(f"console {m.text}")
            ),
        )
        page.on(
            "request",
            lambda r: (
                r.url.startswith(f"http://127.0.0.1:{port}/")
                or r.url.startswith("data:")
                or wrong.append(f"fetched {r.url}")
            ),
        )
        page.on(
            "response",
            lambda r: traffic.append(
                r.url
                + str(r.headers)
                + (
                    r.text()
                    if r.request.method == "POST" and r.request.resource_type == "fetch"
                    else ""
                )
            ),
        )
        page.goto(f"http://127.0.0.1:{port}/")
        page.fill("#name", f"rater {n}")
        page.keyboard.press("Enter")
        for step in range(20):
            page.wait_for_selector(
                f'#count:text-matches("^{step} rated")', timeout=30000
            )  # selectors only: the page's policy forbids evaluating strings
            page.wait_for_selector("nav button:enabled", timeout=60000)
            if step == 0:
                page.screenshot(path=out / f"rater-{n}.png", full_page=True)
                if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                    wrong.append(f"wider than the screen at {page.viewport_size}")
            if n == 0:
                page.keyboard.press(("1", "2", "0", "ArrowLeft", "ArrowRight")[step % 5])
            else:
                page.click(f"nav button >> nth={step % 3}")
        page.wait_for_selector('#said:text-matches("^All done")', timeout=60000)
        page.screenshot(path=out / f"done-{n}.png")
        if page.evaluate("window.ran") is not None:
            wrong.append("a script of an answer ran")
        browser.close()


def leaves(port, chromium, store, wrong):
    """A rater who opens the page and closes it leaves no slot taken."""
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        page.fill("#name", "leaver")
        page.keyboard.press("Enter")
        page.wait_for_selector("#rate:not([hidden])")
        with store.transaction() as c:
            taken = c.execute("select count(*) from slots").fetchone()[0]
        page.goto("about:blank")
        time.sleep(1)
        with store.transaction() as c:
            after = c.execute("select count(*) from slots").fetchone()[0]
        if (taken, after) != (1, 0):
            wrong.append(f"slots taken {taken}, after leaving {after}: 1 and 0 expected")
        browser.close()


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--chromium", default="/usr/bin/chromium")
    p.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/rate-browser"))
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    wrong, traffic = [], []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        a, b = (
            write(folder / "a.json", "hidden-student", NASTY),
            write(
                folder / "b.json",
                "hidden-teacher",
                "A plain answer to this point.\n\n- one\n- two\n\nIn conclusion, birds.",
            ),
        )
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "study.rate",
                a,
                b,
                "--db",
                str(folder / "votes.sqlite"),
                "--port",
                "0",
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            port = int(re.search(r":(\d+)/", server.stdout.readline()).group(1))
            store = Store(folder / "votes.sqlite")
            leaves(port, args.chromium, store, wrong)
            threads = [
                threading.Thread(
                    target=rate, args=(port, n, args.chromium, args.out, wrong, traffic)
                )
                for n in range(3)
            ]
            [t.start() for t in threads]
            [t.join() for t in threads]
            votes = store.votes()
        finally:
            server.terminate()
            server.wait()
    if len(votes) != 60 or len({(v["item"], v["rater"]) for v in votes}) != 60:
        wrong.append(f"{len(votes)} votes, 60 different ones expected")
    wrong += ["a model's name travelled" for t in traffic if "hidden-" in t][:1]
    for line in wrong:
        print("WRONG:", line)
    print(
        f"{len(votes)} votes of 3 raters on 20 items, {len(traffic)} responses looked "
        f"through; screenshots in {args.out}"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
