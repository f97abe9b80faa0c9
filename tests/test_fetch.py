"""runs/fetch.sh: what it names, and that a broken download leaves nothing. No network is used."""

import pathlib
import subprocess
import tarfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
CURL = """#!/bin/sh
while [ "$1" != -o ]; do shift; done
case $3 in
    *data.tar) cp {archive} "$2" ;;
    *{broken}*) echo half >"$2"; exit 22 ;;
    *) echo "$3" >"$2" ;;
esac
"""


@pytest.fixture
def fetch(tmp_path):
    """fetch(*arguments, broken="", **variables) -> the finished process, with a curl of our own."""

    def run(*arguments, broken="nothing", **variables):
        (tmp_path / "data" / "dev").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "dev" / "anatomy_dev.csv").write_text("q,1,2,3,4,A\n")
        with tarfile.open(tmp_path / "archive.tar", "w") as archive:
            archive.add(tmp_path / "data", "data")
        curl = tmp_path / "bin" / "curl"
        curl.parent.mkdir(exist_ok=True)
        curl.write_text(CURL.format(archive=tmp_path / "archive.tar", broken=broken))
        curl.chmod(0o755)
        env = {"PATH": f"{curl.parent}:/usr/bin:/bin", "DATA": str(tmp_path / "out")} | variables
        command = ["sh", str(ROOT / "runs" / "fetch.sh"), *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True)

    return run


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


BENCHMARKS = {
    "mmlu/dev/anatomy_dev.csv",
    "NQ-open.dev.jsonl",
    "NQ-open.train.jsonl",
    "HumanEval.jsonl.gz",
    "real_toxicity_prompts.jsonl",
    "prompts/vicuna.jsonl",
    "prompts/koala.jsonl",
    "prompts/self_instruct.jsonl",
}


def test_benchmarks_are_fetched_once_and_dialogues_where_asked(fetch, tmp_path):
    assert fetch().returncode == 0
    assert files(tmp_path / "out") == BENCHMARKS
    again = fetch("--dialogues")
    assert again.returncode == 0 and again.stdout.count("is there") == len(BENCHMARKS)
    assert files(tmp_path / "out") == BENCHMARKS | {"sharegpt.json", "hc3.jsonl"}


def test_a_broken_download_leaves_nothing_and_the_rest_stays(fetch, tmp_path):
    broken = fetch(broken="HumanEval")
    assert broken.returncode == 2 and "HumanEval" in broken.stderr
    assert files(tmp_path / "out") == {f for f in BENCHMARKS if f.startswith(("mmlu", "NQ"))}
    assert fetch().returncode == 0
    assert files(tmp_path / "out") == BENCHMARKS


def test_a_dry_run_fetches_nothing_and_a_wrong_option_is_named(fetch, tmp_path):
    dry = fetch("--dialogues", DRY_RUN="1")
    assert dry.returncode == 0 and len(dry.stdout.splitlines()) == 10
    assert not (tmp_path / "out").exists()
    wrong = fetch("--all")
    assert wrong.returncode == 2 and "--all is no option" in wrong.stderr
