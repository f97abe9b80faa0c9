"""Tokenizers' files: copied, damaged, missing; the command."""

import hashlib
import json
import pickle
import subprocess
import sys

import pytest
from toy_tokenizers import HERE, MERGES, TRICKY, write_gpt2, write_llama3, write_sentencepiece

from host import files
from text import tokenizer
from text.tokenizer import load


def test_save_copies_the_files_and_nothing_else(tmp_path, toy):
    for _ in range(2):  # the second time over what is there
        toy.save(tmp_path / "run" / "tokenizer")
    copies = list((tmp_path / "run" / "tokenizer").iterdir())
    assert {f.name: f.read_bytes() for f in copies} == {f.name: f.read_bytes() for f in toy.files}
    assert load(tmp_path / "run").fingerprint == toy.fingerprint
    assert (
        toy.fingerprint == hashlib.sha256(b"".join(f.read_bytes() for f in toy.files)).hexdigest()
    )


def test_a_failing_save_leaves_the_old_file(tmp_path, toy, monkeypatch):
    target = tmp_path / toy.files[0].name
    target.write_text("old")
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        toy.save(tmp_path)
    assert target.read_text() == "old" and [f.name for f in tmp_path.iterdir()] == [target.name]


def test_a_tokenizer_travels_to_another_process(toy):
    again = pickle.loads(pickle.dumps(toy))
    assert [again.encode(text) for text in TRICKY] == [
        toy.encode(text) for text in TRICKY
    ] and again.size == toy.size


def damage(folder, case):  # noqa: C901, PLR0915  a table of cases
    """One way to be wrong -> the path to load."""
    if case == "no such path":
        return folder / "nowhere"
    if case == "empty folder":
        return folder
    if case == "one half":
        (write_gpt2(folder) / "vocab.bpe").unlink()
        return folder
    if case == "one half named":
        (write_gpt2(folder) / "vocab.bpe").unlink()
        return folder / "encoder.json"
    if case == "only tokenizer.json":
        (folder / "tokenizer.json").write_text("{}")
        return folder
    if case == "other text":
        (folder / "tokenizer.model").write_text("hello\n")
        return folder / "tokenizer.model"
    if case == "cut model":
        path = write_sentencepiece(folder) / "tokenizer.model"
        path.write_bytes(path.read_bytes()[:-60])
    if case == "two models":
        write_sentencepiece(folder, "a.model")
        write_llama3(folder, "b.model")
    if case == "model and pair":
        write_sentencepiece(write_gpt2(folder))
    if case == "bad rank line":
        path = write_llama3(folder) / "tokenizer.model"
        path.write_bytes(path.read_bytes() + b"!!! x\n")
    if case == "missing rank":
        path = write_llama3(folder) / "tokenizer.model"
        path.write_bytes(
            b"".join(
                path.read_bytes().splitlines(True)[:-3] + path.read_bytes().splitlines(True)[-1:]
            )
        )
    if case == "missing byte":
        path = write_llama3(folder) / "tokenizer.model"
        path.write_bytes(b"".join(path.read_bytes().splitlines(True)[:200]))
    if case == "not json":
        (write_gpt2(folder) / "encoder.json").write_text("{")
    if case == "json list":
        (write_gpt2(folder) / "encoder.json").write_text("[1, 2]")
    if case == "binary merges":
        (write_gpt2(folder) / "vocab.bpe").write_bytes(b"\xff\xfe\x00")
    if case == "other merges":
        with (write_gpt2(folder) / "vocab.bpe").open("a", encoding="utf-8") as file:
            file.write("z z\n")
    if case == "useless merge":
        write_gpt2(folder)
        vocab = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        vocab["hll"] = len(vocab)
        vocab["hel"] = len(
            vocab
        )  # "hel" starts as h e l: he joins first, and then there is no (h, el)
        vocab["el"] = len(vocab)
        (folder / "encoder.json").write_text(json.dumps(vocab), encoding="utf-8")
        with (folder / "vocab.bpe").open("a", encoding="utf-8") as file:
            file.write("h ll\ne l\nh el\n")
    if case == "merge twice":
        with (write_gpt2(folder) / "vocab.bpe").open("a", encoding="utf-8") as file:
            file.write("h e\n")
    if case in ("id gap", "no end of text"):
        path = write_gpt2(folder) / "encoder.json"
        vocab = json.loads(path.read_text(encoding="utf-8"))
        if case == "id gap":
            vocab["<|endoftext|>"] += 5
        else:
            del vocab["<|endoftext|>"]
        path.write_text(json.dumps(vocab), encoding="utf-8")
    return folder


CASES = {
    "no such path": "does not exist",
    "empty folder": "holds no tokenizer",
    "one half": "other half",
    "one half named": "name one of these",
    "only tokenizer.json": "tokenizer.json is no tokenizer.json that",
    "other text": "neither a SentencePiece model",
    "cut model": "not a whole SentencePiece model",
    "two models": r"2 tokenizers \(a.model, b.model\)",
    "model and pair": "2 tokenizers",
    "bad rank line": f"line {257 + len(MERGES)} ",
    "missing rank": "not 0 to",
    "missing byte": "single bytes",
    "not json": "not a JSON object",
    "json list": "not a JSON object",
    "binary merges": "line 1 is not",
    "other merges": "makes 'zz', which it lacks",
    "merge twice": "twice",
    "useless merge": r"'h el' .merge 26.",
    "id gap": "no gaps",
    "no end of text": "no end token",
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_user_can_mend_is_one_line_with_the_path(tmp_path, capfd, case):
    path = damage(tmp_path, case)
    with pytest.raises(ValueError, match=CASES[case]) as error:
        load(path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    capfd.readouterr()
    assert tokenizer.main([str(path), "text"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err == f"tokenizer: {error.value}\n"


def test_a_vocabulary_of_another_size_is_refused_with_both_numbers(toy):
    tokenizer.check_size(toy, toy.base_size)
    tokenizer.check_size(toy, toy.size)
    rule = rf"tokenizer .* has {toy.base_size} \(with role tokens {toy.base_size + 2}\)"
    with pytest.raises(ValueError, match="^weights.npz has 32000 ids, " + rule):
        tokenizer.check_size(toy, 32000, "weights.npz")


def test_the_command_shows_each_token(toy, capsys):
    assert tokenizer.main([str(toy.files[0]), "the \x1b[31m"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith(f"{toy.kind}, {toy.base_size} ids") and "\x1b" not in out
    assert [int(line.split()[0]) for line in out.splitlines()[1:]] == toy.encode("the \x1b[31m")


def test_the_command_without_a_text_says_how_it_is_used(capsys):
    with pytest.raises(SystemExit) as stopped:
        tokenizer.main(["somewhere"])
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "TEXT" in err and "--help" in err


def test_importing_and_encoding_needs_no_jax(toys):
    code = (
        "import sys; from text import tokenizer; tokenizer.load(sys.argv[1]).encode('x'); "
        "sys.exit(any(m in sys.modules for m in ('jax', 'torch', 'transformers')))"
    )
    for tok in toys.values():
        assert (
            subprocess.run(
                [sys.executable, "-c", code, str(tok.files[0])], cwd=HERE.parent
            ).returncode
            == 0
        )
