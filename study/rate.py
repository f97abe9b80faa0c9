"""Blind pairwise rating: a page on which people say which of two answers is better, and what their votes say.

    python -m study.rate A B --db votes.sqlite               # serves http://127.0.0.1:8017/; A under test, B the teacher; the same command goes on
    python -m study.rate results --db votes.sqlite --out DIR # majority of three, intervals, agreement; DIR/votes.csv
    python -m study.rate results --votes testset-v1.json     # the same of PandaLM's votes

A and B are answers in any form that answers.py reads, paired on the same instruction. A rater never meets a name: the page, its addresses and its traffic carry the texts and an opaque lease;
which answer stands first is drawn anew for each showing and kept here. Answers are shown as Markdown: markdown-it without HTML makes the markup, nh3 lets through a short list of tags and
http(s) links, and the page's policy runs no script but page.js and loads no image, so nothing a model wrote runs or fetches. A request must name this server in Host (DNS rebinding) and,
if it changes something, in Origin, as JSON, with a same-site cookie (forgery from other pages).
Left out: TLS (put a reverse proxy before it, and name it with --name), payment of raters.
"""

import argparse
import functools
import hmac
import pathlib
import re
import signal
import sys

from study import answers, preference
from study.votes import Store

PAGE = pathlib.Path(__file__).parent / "rate_page"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
FILES = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
TAGS = set(
    "p br hr em strong s code pre blockquote ul ol li h1 h2 h3 h4 h5 h6 table thead tbody tr th td a".split()
)
LONGEST = 200_000  # characters of an answer that are shown


# ---- the texts -------------------------------------------------------------------------------------------------------


@functools.cache
def markdown():
    """(text -> HTML). Images become their words, so that nothing is fetched; HTML in the text stays text."""
    from markdown_it import MarkdownIt

    md = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(
        ["table", "strikethrough"]
    )
    md.add_render_rule(
        "image", lambda self, tokens, i, options, env: f"[image: {_escape(tokens[i].content)}]"
    )
    return md


def _escape(text):
    return (
        text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    )


@functools.lru_cache(maxsize=256)
def render(text):
    """A model's Markdown as HTML that runs and fetches nothing."""
    import nh3

    if not text.strip():
        return "<p><em>(an empty answer)</em></p>"
    shown = markdown().render(text[:LONGEST]) + (
        f"<p><em>(cut: {len(text)} characters)</em></p>" if len(text) > LONGEST else ""
    )
    return nh3.clean(
        shown,
        tags=TAGS,
        attributes={"a": {"href"}, "ol": {"start"}},
        url_schemes={"http", "https"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


def load_items(a, b, questions=None, gold=None, limit=None):
    """Items for votes.Store from two sources and a file of gold pairs -> (items, names, line that counts them)."""
    sides = [answers.read(path, questions) for path in (a, b)]
    pairs, left = answers.pair(*sides)
    nameless = sum(not (x["instruction"] or y["instruction"]) for x, y in pairs)
    if nameless:
        raise ValueError(
            f"{nameless} of {len(pairs)} pairs have no instruction to show: give --questions FILE (Vicuna's question.jsonl)"
        )
    line = answers.counted(pairs, left) + (
        f", the first {limit} taken (--limit)" if limit and limit < len(pairs) else ""
    )
    ids = answers.unique_ids(pairs)
    items = [
        {
            "id": i,
            "instruction": x["instruction"] or y["instruction"],
            "a": x["output"],
            "b": y["output"],
        }
        for i, (x, y) in zip(ids, pairs, strict=True)
    ][:limit]
    for number, (place, row) in enumerate(answers.rows_of(gold) if gold else ()):
        if not all(isinstance(row.get(k), str) for k in ("instruction", "better", "worse")):
            raise ValueError(
                f'{gold} {place} is no gold item: it needs "instruction", "better" and "worse" (and "equal": true where neither is)'
            )
        items.append(
            {
                "id": f"gold {number}",
                "instruction": row["instruction"],
                "a": row["better"],
                "b": row["worse"],
                "gold": "tie" if row.get("equal") is True else "a",
            }
        )
    return items, {"a": answers.name_of(sides[0]), "b": answers.name_of(sides[1])}, line


def read_tokens(path):
    """{token: rater} of a file with one "name token" a line; tokens are letters, digits, - and _, 16 or more, all different."""
    found = {}
    for number, line in enumerate(pathlib.Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, token = line.strip().rpartition(" ")
        if (
            not name.strip()
            or not re.fullmatch(r"[A-Za-z0-9_-]{16,}", token)
            or token in found
            or name.strip() in found.values()
        ):
            raise ValueError(
                f"{path} line {number}: a line is `name token`, each once, the token 16 or more of A-Z a-z 0-9 - _ (python -c 'import secrets; print(secrets.token_urlsafe(16))')"
            )
        found[token] = name.strip()
    if not found:
        raise ValueError(f"{path} holds no token: write one line `name token` a person")
    return found


# ---- the server ------------------------------------------------------------------------------------------------------


def application(store, hosts, tokens=None):
    """The WSGI application. hosts: what a Host header may say; tokens: {token: rater}, or None where any name may enter (loopback)."""
    import flask
    from werkzeug.exceptions import BadRequest, HTTPException

    app = flask.Flask("rate", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = 4096  # a vote is 100 bytes

    @app.before_request
    def from_here():
        request = flask.request
        if request.headers.get("Host", "").lower() not in hosts:
            return flask.jsonify(error="this address is not served"), 421
        if request.method == "POST":
            origin = request.headers.get("Origin", "").lower()
            if (
                origin.partition("://")[2] != request.headers["Host"].lower()
                or request.mimetype != "application/json"
            ):
                return flask.jsonify(error="requests come from the page only"), 403

    @app.after_request
    def guarded(response):
        response.headers.update(HEADERS)
        return response

    @app.errorhandler(HTTPException)
    def plain(error):
        return flask.jsonify(error=error.description), error.code

    def field(name, longest=200):
        body = flask.request.get_json()
        value = body.get(name) if isinstance(body, dict) else None
        if not isinstance(value, str) or len(value) > longest:
            raise BadRequest(f"needs {name}")
        return value

    def rater():
        found = store.rater(flask.request.cookies.get("rater"))
        if found is None or (tokens is not None and found not in tokens.values()):
            flask.abort(
                flask.make_response(
                    flask.jsonify(error="enter first", tokens=tokens is not None), 401
                )
            )
        return found

    for address, (name, kind) in FILES.items():
        text = (PAGE / name).read_text(encoding="utf-8")
        app.add_url_rule(
            address,
            name,
            lambda text=text, kind=kind: flask.Response(
                text, content_type=f"{kind}; charset=utf-8"
            ),
        )

    @app.post("/enter")
    def enter():
        given = field("name").strip()
        if tokens is not None:
            who = next(
                (n for t, n in tokens.items() if hmac.compare_digest(t.encode(), given.encode())),
                None,
            )
            if who is None:
                return flask.jsonify(error="this token is not known"), 403
        else:
            who = "".join(c for c in given if c.isprintable())
            if not who:
                return flask.jsonify(
                    error="a name is needed, so that nobody meets an item twice"
                ), 400
        response = flask.jsonify(ok=True)
        response.set_cookie(
            "rater",
            store.enter(who),
            httponly=True,
            samesite="Strict",
            max_age=30 * 86400,
            secure=flask.request.headers["Origin"].startswith("https:"),
        )
        return response

    @app.post("/next")
    def next_item():
        who = rater()
        slot, progress = store.take(who), store.progress(who)
        state = {"done": progress["mine"], "left": progress["open"]}
        if slot is None:
            return flask.jsonify(state | {"item": None})
        texts = {side: slot[side] for side in "ab"}
        first = texts.pop(slot["first"])
        return flask.jsonify(
            state
            | {
                "item": {
                    "lease": slot["lease"],
                    "instruction": slot["instruction"],
                    "first": render(first),
                    "second": render(*texts.values()),
                },
                "hold_s": store.lease_s / 3,
            }
        )

    @app.post("/vote")
    def vote():
        who, side = rater(), field("choice")
        if side not in ("first", "second", "equal"):
            raise BadRequest("choice is first, second or equal")
        if not store.vote(who, field("lease"), side):
            return flask.jsonify(error="this item went to somebody else in the meantime"), 409
        progress = store.progress()
        print(
            f"\r{progress['votes']} of {progress['wanted']} votes, {progress['raters']} raters ",
            end="",
            file=sys.stderr,
            flush=True,
        )
        return flask.jsonify(ok=True)  # the vote is on disk

    @app.post("/hold")
    def hold():
        return flask.jsonify(ok=store.hold(rater(), field("lease")))

    @app.post("/leave")
    def leave():
        return flask.jsonify(ok=store.leave(rater(), field("lease")))

    return app


def serve(args):
    """Serve the page until Ctrl-C or SIGTERM."""
    import waitress

    loopback = args.host in LOOPBACK
    if not loopback and not args.tokens:
        raise ValueError(
            f"--host {args.host} is reached by others: give --tokens FILE, one line `name token` a person, or serve 127.0.0.1"
        )
    wildcard = args.host in ("0.0.0.0", "::", "")
    if wildcard and not args.name:
        raise ValueError(
            f"--host {args.host or '(empty)'} serves every address: say with --name HOST under which names it is opened"
        )
    for name, least in (("raters", 1), ("lease", 1), ("gold_every", 1), ("limit", 1)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise ValueError(
                f"--{name.replace('_', '-')} {getattr(args, name)} is out of range: use {least} or more"
            )
    if not 0 <= args.port <= 65535:
        raise ValueError(f"--port {args.port} is out of range: use 0 (any) to 65535")
    tokens = read_tokens(args.tokens) if args.tokens else None
    items, names, line = load_items(args.a, args.b, args.questions, args.gold, args.limit)
    store = Store(args.db, items, names, args.raters, args.lease, args.gold_every)
    try:
        server = waitress.create_server(
            lambda *call: app(*call),
            host=args.host,
            port=args.port,
            threads=8,
            ident=None,
            max_request_body_size=4096,
        )
    except OSError as error:
        raise ValueError(
            f"--port {args.port} on {args.host} cannot be opened ({error.strerror}): name another --port"
        ) from None
    port = server.effective_port
    own = LOOPBACK if loopback else () if wildcard else (args.host,)
    hosts = {h for name in (*own, *args.name) for h in _spellings(name.lower(), port)}
    app = application(store, hosts, tokens)
    progress = store.progress()
    print(
        f"{line}; {sum('gold' in i for i in items)} gold items; {progress['votes']} of {progress['wanted']} votes are there",
        file=sys.stderr,
    )
    shown = args.name[0] if wildcard else args.host
    print(
        f"rating page: http://{next(iter(_spellings(shown, port)))}/   Ctrl-C stops it, the same command goes on; results: python -m study.rate results --db {args.db}",
        flush=True,
    )
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        server.run()
    except KeyboardInterrupt:
        pass
    print("\nstopped; every vote is kept", file=sys.stderr)
    return 0


def _spellings(name, port):
    """How a browser may write this host: with the port, and without it for 80 and 443 or a name behind a proxy."""
    name = f"[{name}]" if ":" in name and not re.search(r"^\[|^[^:]*:\d+$", name) else name
    return [f"{name}:{port}", name]


# ---- the results -----------------------------------------------------------------------------------------------------


def show_results(args):
    """Print what the votes say, and write it where --out is given."""
    if bool(args.db) == bool(args.votes):
        raise ValueError(
            "results needs --db FILE (votes of this program) or --votes FILE (PandaLM's form), and not both"
        )
    if not 0 <= args.min_gold <= 1:
        raise ValueError(f"--min-gold {args.min_gold} is out of range: use a share from 0 to 1")
    if args.db:
        store = Store(args.db)
        votes, names, per_item, settings = (
            store.votes(),
            store.names,
            store.per_item,
            {"db": args.db, "fingerprint": store.meta["fingerprint"]},
        )
    else:
        votes, per_item = preference.read_votes(args.votes)
        names, settings = (
            {"a": "first", "b": "second"},
            {"votes_file": args.votes, "fingerprint": answers.fingerprint(args.votes)},
        )
    found, items = preference.summary(votes, per_item, args.min_gold, args.seed)
    print("\n".join(preference.lines(found, names)))
    if args.out:
        preference.write(
            args.out,
            found,
            items,
            votes,
            names,
            settings | {"raters_per_item": per_item, "min_gold": args.min_gold, "seed": args.seed},
        )
        print(f"{args.out}/results.json, samples.jsonl, index.html, votes.csv")
    return 0


def parser():
    p = argparse.ArgumentParser(
        prog="python -m study.rate",
        description="Serve a page on which people choose the better of two answers, names hidden; or, as `results`, say what their votes say.",
        epilog="results: python -m study.rate results --help. Keys on the page: 1 or left, 2 or right, 0 equal.",
    )
    p.add_argument(
        "a",
        metavar="A",
        help="answers under test: a result directory of eval.py generate, AlpacaEval JSON, Vicuna JSONL, ...",
    )
    p.add_argument("b", metavar="B", help="the teacher's answers")
    p.add_argument(
        "--db",
        required=True,
        metavar="FILE",
        help="SQLite file of the votes; made where it is not there, gone on with where it is",
    )
    p.add_argument(
        "--questions",
        metavar="FILE",
        help="Vicuna's question.jsonl, where the answers do not carry their questions",
    )
    p.add_argument(
        "--raters",
        type=int,
        default=3,
        metavar="N",
        help="different raters an item [default %(default)s, the paper's]",
    )
    p.add_argument("--limit", type=int, metavar="N", help="only the first N pairs")
    p.add_argument(
        "--gold",
        metavar="FILE",
        help='attention checks, JSON lines {"instruction", "better", "worse"}; every rater meets them among the others',
    )
    p.add_argument(
        "--gold-every",
        type=int,
        default=10,
        metavar="N",
        help="one gold item in N items of a rater [default %(default)s]",
    )
    p.add_argument(
        "--lease",
        type=float,
        default=600,
        metavar="S",
        help="seconds after which an item that nobody touches may go to another rater [default %(default)g]",
    )
    p.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="other than loopback demands --tokens [default %(default)s]",
    )
    p.add_argument(
        "--port", type=int, default=8017, metavar="N", help="0: any free one [default %(default)s]"
    )
    p.add_argument(
        "--tokens", metavar="FILE", help="one line `name token` a person: only they can rate"
    )
    p.add_argument(
        "--name",
        nargs="+",
        default=[],
        metavar="HOST",
        help="further names under which the page is opened (a reverse proxy's, or with --host 0.0.0.0)",
    )
    r = argparse.ArgumentParser(
        prog="python -m study.rate results",
        description="Majority, win / tie / lose, intervals, agreement, time.",
    )
    r.add_argument("--db", metavar="FILE", help="votes of the rating page")
    r.add_argument(
        "--votes",
        metavar="FILE",
        help="votes in PandaLM's form instead: annotator1, annotator2, ... (0 equal, 1 first, 2 second)",
    )
    r.add_argument(
        "--min-gold",
        type=float,
        default=0.0,
        metavar="X",
        help="leave out raters with less than this share of their gold items right [default %(default)s]",
    )
    r.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the bootstrap [default %(default)s]"
    )
    r.add_argument(
        "--out", metavar="DIR", help="also write results.json, samples.jsonl, index.html, votes.csv"
    )
    return p, r


def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    rating, results = parser()
    try:
        return (
            show_results(results.parse_args(argv[1:]))
            if argv[:1] == ["results"]
            else serve(rating.parse_args(argv))
        )
    except (ValueError, FileNotFoundError) as error:
        print(f"rate.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
