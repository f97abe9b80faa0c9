"""lm-eval's local-completions against `python -m serve`, and eval.py on the same questions.

    python bench/lm_eval_vs_serve.py --model SmolLM2.gguf --mmlu mmlu/ --nq nq_open/ \\
        --lm-eval-python VENV/bin/python --limit 20 --out out/lm-eval

MMLU (5 shots), Natural Questions (3 shots) and twelve questions in ARC-easy's form are asked by
eval.py first. lm-eval (pip install "lm-eval[api]", in an environment of its own) then reads the
same prompts out of task files written here, and asks the server over HTTP with the model's own
tokenizer. Prints both scores and the items that differ; the exit status is 1 where a score differs.
Left out: lm-eval's own downloads of data; speed.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# In the form of ARC-easy: question, choices, the right one.
ARC = [
    ("Which of these is a source of light?", ["the Sun", "a rock", "a mirror", "the Moon"], 0),
    ("Water turns to ice when it is", ["heated", "cooled", "stirred", "poured"], 1),
    ("Which part of a plant takes up water?", ["petals", "leaves", "roots", "seeds"], 2),
    ("Which animal lays eggs?", ["dog", "cat", "cow", "hen"], 3),
    ("What do plants need to make food?", ["sunlight", "sand", "salt", "darkness"], 0),
    ("Which gas do people need to breathe?", ["helium", "oxygen", "neon", "methane"], 1),
    ("Which of these is a metal?", ["wood", "glass", "iron", "paper"], 2),
    ("Which planet is closest to the Sun?", ["Earth", "Mars", "Jupiter", "Mercury"], 3),
    ("A magnet attracts", ["nails of iron", "plastic cups", "wool", "rubber bands"], 0),
    ("Which sense do ears serve?", ["sight", "hearing", "taste", "smell"], 1),
    ("Which is the largest?", ["a mouse", "a cat", "an elephant", "a dog"], 2),
    ("What is the center of an atom called?", ["electron", "shell", "orbit", "nucleus"], 3),
]
CHOICE_TASK = """\
task: local_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: prompt
doc_to_choice: choices
doc_to_target: gold
target_delimiter: ""
num_fewshot: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
WORDS_TASK = """\
task: local_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
output_type: generate_until
doc_to_text: prompt
doc_to_target: gold
target_delimiter: ""
num_fewshot: 0
generation_kwargs: {{until: ["\\n"], do_sample: false, temperature: 0, max_gen_toks: 32}}
process_results: !function words.process_results
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
WORDS = """\
import re
import string


def plain(text):
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\\b(a|an|the)\\b", " ", text).split())


def process_results(doc, results):
    return {"exact_match": float(plain(results[0]) in map(plain, doc["answers"]))}
"""


def flags():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--model", required=True, help="a model path with its tokenizer")
    p.add_argument("--mmlu", required=True, help="the original CSV folders")
    p.add_argument("--subjects", nargs="+", default=["high_school_psychology"])
    p.add_argument("--nq", required=True, help="folder with NQ-open.dev.jsonl and the train file")
    p.add_argument("--limit", type=int, default=20, help="questions of each subject, and of NQ")
    p.add_argument("--lm-eval-python", required=True, help="an interpreter with lm-eval[api]")
    p.add_argument("--out", required=True, help="folder of both results")
    return p


def program(*words):
    """One of our programs, to its end; its words go to stderr."""
    command = [sys.executable, *map(str, words)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)


def samples(folder):
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def ask_ours(args, out):
    """{name: [{"prompt", "gold", "right", …}]} of eval.py's three tasks."""
    common = ["--model", args.model, "--limit", args.limit, "--batch", 8]
    mmlu = ["mmlu", "--data", args.mmlu, "--subjects", *args.subjects, "--shots", 5]
    program("eval.py", *mmlu, *common, "--out", out / "mmlu")
    (train,) = pathlib.Path(args.nq).glob("NQ-open.train*")
    dev = pathlib.Path(args.nq, "NQ-open.dev.jsonl")
    nq = ["nq", "--data", dev, "--train", train, "--shots", 3]
    program("eval.py", *nq, *common, "--out", out / "nq")
    arc = [(f"Question: {q}\nAnswer:", [f" {c}" for c in choices], k) for q, choices, k in ARC]
    rows = [{"prefix": text, "text": c} for text, choices, _ in arc for c in choices]
    write_lines(out / "arc_rows.jsonl", rows)
    loglik = ["loglik", "--model", args.model, "--input", out / "arc_rows.jsonl", "--batch", 8]
    program("eval.py", *loglik, "--out", out / "arc")
    of = [item["loglik"] for item in sorted(samples(out / "arc"), key=lambda i: int(i["id"]))]
    best = [max(range(4), key=of[4 * k : 4 * k + 4].__getitem__) for k in range(len(arc))]
    return {
        "mmlu": [
            {
                "prompt": item["prompt"],
                "choices": [" A", " B", " C", " D"],
                "gold": "ABCD".index(item["gold"]),
                "right": bool(item["verdict"]),
            }
            for item in samples(out / "mmlu")
        ],
        "arc": [
            {"prompt": text, "choices": choices, "gold": gold, "right": b == gold}
            for (text, choices, gold), b in zip(arc, best, strict=True)
        ],
        "nq": [
            {
                "prompt": item["prompt"],
                "gold": item["gold"][0],
                "answers": item["gold"],
                "right": bool(item["verdict"]),
                "output": item["output"],
            }
            for item in samples(out / "nq")
        ],
    }


def write_tasks(folder, items):
    """Task files of lm-eval with the prompts of `items`."""
    folder.mkdir(exist_ok=True)
    (folder / "words.py").write_text(WORDS, encoding="utf-8")
    for name, rows in items.items():
        file = folder / f"{name}.jsonl"
        write_lines(file, rows)
        form = WORDS_TASK if name == "nq" else CHOICE_TASK
        text = form.format(name=name, file=file.absolute())
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def ask_theirs(args, out, names):
    """{name: {place in the file: right}} by lm-eval against a server of the model."""
    tokenizer = pathlib.Path(args.model)
    if not tokenizer.is_dir():
        tokenizer = out / "hf"
        if not tokenizer.exists():
            program("-m", "checkpoint", "convert", args.model, tokenizer, "--to", "hf")
    command = [sys.executable, "-m", "serve", "--model", args.model, "--name", "m", "--port", "0"]
    server = subprocess.Popen([*command, "--batch", "8"], cwd=ROOT, stderr=subprocess.PIPE)
    try:
        address = None
        while not address:
            line = server.stderr.readline().decode()
            assert line, "the server ended"
            address = re.match(r"serving (http://\S+)/ ", line)
        log = open(out / "serve.log", "wb")
        drain = subprocess.Popen(["cat"], stdin=server.stderr, stdout=log)
        reach = f"model=m,base_url={address[1]}/v1/completions,tokenizer={tokenizer.absolute()}"
        run = [args.lm_eval_python, "-m", "lm_eval", "--model", "local-completions"]
        run += ["--model_args", reach + ",num_concurrent=4,max_length=2048,max_retries=1"]
        run += ["--tasks", ",".join(f"local_{name}" for name in names), "--log_samples"]
        run += ["--include_path", str(out / "tasks"), "--output_path", str(out / "lm")]
        offline = {"HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none"}
        subprocess.run(run, check=True, env=os.environ | offline)
    finally:
        server.terminate()
        status = server.wait()
    drain.wait()
    assert status == 0, f"the server ended with {status}"
    right = {}
    for name in names:
        (file, *_) = sorted((out / "lm").rglob(f"samples_local_{name}_*.jsonl"), reverse=True)
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        metric = "exact_match" if name == "nq" else "acc"
        right[name] = {row["doc_id"]: bool(row[metric]) for row in rows}
    return right


def main():
    args = flags().parse_args()
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    items = ask_ours(args, out)
    write_tasks(out / "tasks", items)
    theirs = ask_theirs(args, out, list(items))
    print(f"{'':8}{'n':>5}{'eval.py':>10}{'lm-eval':>10}{'other verdict':>16}")
    same = True
    for name, rows in items.items():
        n, right = len(rows), theirs[name]
        assert sorted(right) == list(range(n)), f"lm-eval has {len(right)} of {n} items of {name}"
        ours = sum(row["right"] for row in rows)
        differ = sum(row["right"] != right[k] for k, row in enumerate(rows))
        print(f"{name:8}{n:5}{ours / n:10.1%}{sum(right.values()) / n:10.1%}{differ:16}")
        same = same and ours == sum(right.values())
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
