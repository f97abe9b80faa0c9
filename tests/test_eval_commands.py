"""eval.py commands: the commands of a file in one start give what each gives alone."""

import json

import pytest
from evaluations import call, result, samples, write_lines

import eval as program
from decoding import opened

pytest_plugins = ["evaluations"]  # its fixtures
pytestmark = pytest.mark.usefixtures("home")


def commands_of(place, tmp_path, out):
    """Two models of one shape and one of another, three tasks -> {name: command}."""
    texts = [{"prefix": "The bread of", "text": " the south"}, {"prefix": "A", "text": " b c"}]
    texts = write_lines(tmp_path / "texts.jsonl", texts)
    prompts = write_lines(tmp_path / "prompts.jsonl", [{"prompt": "Yarimane is"}])
    tasks = {
        "generate": ("--input", prompts, "--max-new-tokens", 9),
        "loglik": ("--input", texts),
        "perplexity": ("--input", prompts.parent / "plain.txt", "--window", 16),
    }
    (prompts.parent / "plain.txt").write_text("The bread of the south and the north")
    return {
        f"{name}-{task}": (task, "--model", place / name, *flags, "--out", out / f"{name}-{task}")
        for name in ("tuned", "run", "base")
        for task, flags in tasks.items()
    }


def write_commands(path, commands):
    path.write_text("\n\n".join(" ".join(map(str, command)) for command in commands) + "\n")
    return path


def test_the_commands_of_a_file_give_what_each_gives_alone_with_programs_compiled_once_a_shape(
    place, tmp_path, monkeypatch
):
    made = {"Scorer": 0, "Decoder": 0, "load_weights": 0}
    for name in made:
        kind = getattr(opened, name)

        def count(*args, name=name, kind=kind):
            made[name] += 1
            return kind(*args)

        monkeypatch.setattr(opened, name, count)
    together = commands_of(place, tmp_path, tmp_path / "o")
    call("commands", write_commands(tmp_path / "list", together.values()))
    # tuned and run are of one shape, base has another vocabulary; decoding and scoring want the
    # weights in another form each
    assert made == {"Scorer": 2, "Decoder": 2, "load_weights": 6}
    for name, command in commands_of(place, tmp_path, tmp_path / "alone").items():
        call(*command)
        a, b = tmp_path / "o" / name, tmp_path / "alone" / name
        clock = {"seconds": 0, "items_per_s": 0}
        assert samples(a) == samples(b) and samples(a)
        assert {**result(a), **clock} == {**result(b), **clock}


def test_a_command_that_fails_is_named_and_the_rest_goes_on(place, tmp_path, capsys):
    commands = list(commands_of(place, tmp_path, tmp_path / "o").values())[:2]
    commands.insert(0, ("generate", "--model", tmp_path / "gone", *commands[0][3:]))
    commands.insert(2, ("nq", "--model", place / "tuned", "--out", tmp_path / "o" / "nq"))
    call("commands", write_commands(tmp_path / "list", commands), expect=2)
    said = capsys.readouterr()
    assert "line 1 of" in said.err and "line 5 of" in said.err and "gone" in said.err
    assert said.out.endswith("4 commands, 2 failed\n")
    for name in ("tuned-generate", "tuned-loglik"):
        assert json.loads((tmp_path / "o" / name / "results.json").read_text())["finished"]


@pytest.mark.parametrize(
    "text, said",
    [
        ("\n\n", "holds no command"),
        ("chat --model M", "line 1: chat is no command of a file"),
        ("\ncommands x", "line 2: commands is no command of a file"),
    ],
)
def test_a_file_that_is_no_list_of_commands_is_one_line(text, said, tmp_path, capsys):
    (tmp_path / "list").write_text(text)
    assert program.main(["commands", str(tmp_path / "list")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
