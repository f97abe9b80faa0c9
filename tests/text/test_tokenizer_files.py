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


def half(folder):
    (write_gpt2(folder) / "vocab.bpe").unlink()
    return folder


def put(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def append(path, content):
    put(path, path.read_bytes() + content.encode())


def lines_of(folder, keep):
    path = write_llama3(folder) / "tokenizer.model"
    put(path, b"".join(keep(path.read_bytes().splitlines(True))))


def vocabulary(folder, change):
    path = write_gpt2(folder) / "encoder.json"
    vocab = json.loads(path.read_text(encoding="utf-8"))
    change(vocab)
    put(path, json.dumps(vocab))
    return folder / "vocab.bpe"


def useless(vocab):
    # "hel" starts as h e l: he joins first, and then there is no (h, el)
    for token in ("hll", "hel", "el"):
        vocab[token] = len(vocab)


def cut(path):
    put(path, path.read_bytes()[:-60])


DAMAGE = {  # one way to be wrong each; a path that is returned is the one to load
    "no such path": lambda f: f / "nowhere",
    "empty folder": lambda f: f,
    "one half": half,
    "one half named": lambda f: half(f) / "encoder.json",
    "only tokenizer.json": lambda f: put(f / "tokenizer.json", "{}"),
    "other text": lambda f: put(f / "tokenizer.model", "hello\n") or f / "tokenizer.model",
    "cut model": lambda f: cut(write_sentencepiece(f) / "tokenizer.model"),
    "two models": lambda f: (write_sentencepiece(f, "a.model"), write_llama3(f, "b.model"))[2:],
    "model and pair": lambda f: write_sentencepiece(write_gpt2(f)),
    "bad rank line": lambda f: append(write_llama3(f) / "tokenizer.model", "!!! x\n"),
    "missing rank": lambda f: lines_of(f, lambda lines: lines[:-3] + lines[-1:]),
    "missing byte": lambda f: lines_of(f, lambda lines: lines[:200]),
    "not json": lambda f: put(write_gpt2(f) / "encoder.json", "{"),
    "json list": lambda f: put(write_gpt2(f) / "encoder.json", "[1, 2]"),
    "binary merges": lambda f: put(write_gpt2(f) / "vocab.bpe", b"\xff\xfe\x00"),
    "other merges": lambda f: append(write_gpt2(f) / "vocab.bpe", "z z\n"),
    "useless merge": lambda f: append(vocabulary(f, useless), "h ll\ne l\nh el\n"),
    "merge twice": lambda f: append(write_gpt2(f) / "vocab.bpe", "h e\n"),
    "id gap": lambda f: vocabulary(f, lambda v: v.update({"<|endoftext|>": len(v) + 4})) and f,
    "no end of text": lambda f: vocabulary(f, lambda v: v.pop("<|endoftext|>")) and f,
}


def damage(folder, case):
    """The path to load, wrong in one way."""
    return DAMAGE[case](folder) or folder


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
