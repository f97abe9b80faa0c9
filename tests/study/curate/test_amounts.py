"""Subsets of a mix by amount: nested, the shortest that reach it, decided by the seed."""

import gzip
import json

import pytest
from test_mix import LONG, TOK, command, lines_of, row

import data
from study.curate import amounts
from text import tokenizer


def subsets(folder, *tokens, seed=0, workers=1):
    return amounts.subsets(folder / "mix.jsonl.gz", TOK, tokens, seed, folder / "amounts", workers)


@pytest.fixture
def big(tmp_path):
    rows = [
        row(f"d{k}", f"Question number {k}?", LONG) | {"source": "hc3" if k % 3 else "sharegpt"}
        for k in range(60)
    ]
    with gzip.open(tmp_path / "mix.jsonl.gz", "wt") as f:
        f.write(lines_of(rows))
    return tmp_path


def text_of(folder, name):
    return gzip.decompress((folder / "amounts" / f"{name}.jsonl.gz").read_bytes())


def test_each_amount_is_a_prefix_of_the_next_and_the_shortest_that_reaches_it(big):
    made = subsets(big, "0.002M", "500", "1k")
    assert [m["amount"] for m in made["amounts"]] == ["0.0005M", "0.001M", "0.002M"]
    texts, tok = [text_of(big, m["amount"]) for m in made["amounts"]], tokenizer.load(TOK)
    assert (
        texts[1].startswith(texts[0])
        and texts[2].startswith(texts[1])
        and len(texts[0]) < len(texts[1]) < len(texts[2])
    )
    for m, text, wanted in zip(made["amounts"], texts, (500, 1000, 2000), strict=False):
        found = [data.tokenize_dialogue(json.loads(line), tok) for line in text.splitlines()]
        sizes = [len(ids) for ids, _ in found]
        assert sum(sizes[:-1]) < wanted <= sum(sizes) == m["all"]["tokens"]
        assert m["all"]["loss_tokens"] == sum(int(mask.sum()) for _, mask in found) and m["all"][
            "dialogues"
        ] == len(found)
        assert sum(s["tokens"] for s in m["sources"].values()) == m["all"]["tokens"] and set(
            m["sources"]
        ) <= {"hc3", "sharegpt"}
    assert len(set(texts[2].splitlines())) == len(texts[2].splitlines())


def test_the_seed_decides_and_workers_do_not(big):
    subsets(big, "1k")
    first = (big / "amounts" / "0.001M.jsonl.gz").read_bytes()
    subsets(big, "1k", workers=2)
    assert (big / "amounts" / "0.001M.jsonl.gz").read_bytes() == first
    subsets(big, "1k", seed=1)
    assert (big / "amounts" / "0.001M.jsonl.gz").read_bytes() != first


def test_an_amount_that_the_mix_does_not_hold_is_one_line(big, capsys):
    made = subsets(big, "1k", "150M")
    err = capsys.readouterr().err
    assert made["not_held"] == ["150M"] and not (big / "amounts" / "150M.jsonl.gz").exists()
    assert [line for line in err.splitlines() if "150M is more than the mix holds" in line]
    with pytest.raises(ValueError, match="fewer than every amount"):
        subsets(big, "150M")


def test_amounts_prints_what_each_contains(big, capsys):
    command("amounts", big, "--tokenizer", TOK, "--tokens", "1k", "--out", big / "amounts")
    said = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert said[0] == ["amount", "source", "dialogues", "turns", "tokens", "loss", "tokens"] and [
        s[1] for s in said[1:]
    ] == ["hc3", "sharegpt", "all"]


def test_a_file_that_is_no_mix_is_one_line(tmp_path):
    (tmp_path / "mix.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n'))
    with pytest.raises(ValueError, match="no dialogue of a mix"):
        subsets(tmp_path, "1k")
