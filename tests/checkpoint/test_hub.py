"""Names on the hub, against a small stand-in of it on loopback."""

import http.server
import json
import os
import subprocess
import sys
import threading

import pytest
from foreign import LLAMA, ROOT, collect, hf_folder, hf_tensors, random_weights

from host.hub_name import is_hub_name

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """org/small is a model, org/gated one behind consent; nothing else is there."""

    folder, asked = None, []

    def do_HEAD(self):
        self.do_GET()

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        self.asked.append(self.path)
        path = self.path.split("?")[0]
        if "org/gated" in path:
            return self.answer(403, b"{}", X_Error_Code="GatedRepo")
        if "org/small" not in path:
            return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
        files = sorted(p.name for p in self.folder.iterdir())
        if path.startswith("/api/models/org/small/tree/"):
            tree = [
                {"type": "file", "path": n, "oid": SHA, "size": (self.folder / n).stat().st_size}
                for n in files
            ]
            return self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")
        if path.startswith("/api/models/"):
            record = {"id": "org/small", "sha": SHA, "siblings": [{"rfilename": n} for n in files]}
            return self.answer(200, json.dumps(record).encode(), Content_Type="application/json")
        content = (self.folder / path.rsplit("/", 1)[1]).read_bytes()
        etag = f'"{abs(hash(path)):x}"'
        return self.answer(200, content, ETag=etag, X_Repo_Commit=SHA, Accept_Ranges="none")

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "model"
    hf_folder(folder, LLAMA, hf_tensors(LLAMA, random_weights(LLAMA)))
    (folder / "pytorch_model.bin").write_bytes(b"never asked for")
    Hub.folder = folder
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()


def convert(name, out, cache, endpoint, **more):
    env = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "JAX_PLATFORMS": "cpu"}
    env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"} | more
    command = [sys.executable, "-m", "checkpoint", "convert", name, str(out)]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=300)


def test_a_model_is_fetched_by_its_name_and_then_read_without_the_hub(server, tmp_path):
    done = convert("org/small", tmp_path / "hf", tmp_path / "cache", server)
    assert done.returncode == 0, done.stderr
    got, want = collect(tmp_path / "hf", LLAMA), random_weights(LLAMA)
    assert all((got[key] == want[key]).all() for key in want)
    assert not any("pytorch_model.bin" in path for path in Hub.asked if "resolve" in path)
    offline = {"HF_HUB_OFFLINE": "1"}
    done = convert("org/small", tmp_path / "hf2", tmp_path / "cache", server, **offline)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name, more, says",
    [
        ("org/nowhere", {}, "the hub has no public model of that name"),
        ("org/gated", {}, "its owners ask for consent"),
        ("org/small", {"HF_HUB_OFFLINE": "1"}, "it was not fetched before"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line_with_the_remedy(name, more, says, server, tmp_path):
    done = convert(name, tmp_path / "hf", tmp_path / "cache", server, **more)
    assert done.returncode == 2 and says in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "hf").exists()


def test_a_mistyped_path_is_not_asked_for():
    assert is_hub_name("HuggingFaceTB/SmolLM2-135M") and is_hub_name("openai-community/gpt2")
    for path in ("tests/nowhere", "/abs/olute", "a/b/c", "../up", "name", "a/b c", str(ROOT)):
        assert not is_hub_name(path), path
