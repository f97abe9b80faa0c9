#!/bin/sh
# The public files that eval.py and study/ read, fetched to where runs/*.sh look for them.
#
#   sh runs/fetch.sh                  MMLU, NQ-open, HumanEval, RealToxicityPrompts, held-out prompts
#   sh runs/fetch.sh --dialogues      also ShareGPT and HC3, the sources of the imitation mix
#   DATA=elsewhere sh runs/fetch.sh   another folder than data/
#   DRY_RUN=1 sh runs/fetch.sh        prints what would be fetched, fetches nothing
#
# Needs curl and tar. A file that is there is not fetched again; none is left half-written.
# Licences differ: docs/files.md names each file's home.
set -eu
cd "$(dirname "$0")/.."

DATA=${DATA:-data}
DRY_RUN=${DRY_RUN:-}
GITHUB=https://raw.githubusercontent.com
HUB=https://huggingface.co/datasets

case ${1:-} in
    "" | --dialogues) ;;
    *) echo "$0: $1 is no option: --dialogues fetches ShareGPT and HC3 too" >&2; exit 2 ;;
esac

fetch() {  # FILE URL
    if [ -e "$DATA/$1" ]; then echo "$DATA/$1 is there"; return; fi
    echo "$DATA/$1 <- $2"
    [ "$DRY_RUN" != 1 ] || return 0
    mkdir -p "$(dirname "$DATA/$1")"
    if ! curl -fL --retry 3 --progress-bar -o "$DATA/$1.tmp" "$2"; then
        rm -f "$DATA/$1.tmp"
        echo "$0: $2 was not fetched: see curl's message, then give the same command again" >&2
        exit 2
    fi
    mv "$DATA/$1.tmp" "$DATA/$1"
}

fetch_mmlu() {  # the archive holds data/dev, data/val, data/test
    if [ -d "$DATA/mmlu" ]; then echo "$DATA/mmlu is there"; return; fi
    fetch mmlu.tar https://people.eecs.berkeley.edu/~hendrycks/data.tar
    [ "$DRY_RUN" != 1 ] || return 0
    rm -rf "$DATA/mmlu.tmp" && mkdir -p "$DATA/mmlu.tmp"
    tar -xf "$DATA/mmlu.tar" -C "$DATA/mmlu.tmp"
    mv "$DATA/mmlu.tmp/data" "$DATA/mmlu"
    rm -rf "$DATA/mmlu.tmp" "$DATA/mmlu.tar"
}

fetch_mmlu
NQ=google-research-datasets/natural-questions/HEAD/nq_open
fetch NQ-open.dev.jsonl $GITHUB/$NQ/NQ-open.dev.jsonl
fetch NQ-open.train.jsonl $GITHUB/$NQ/NQ-open.train.jsonl
fetch HumanEval.jsonl.gz $GITHUB/openai/human-eval/HEAD/data/HumanEval.jsonl.gz
fetch real_toxicity_prompts.jsonl $HUB/allenai/real-toxicity-prompts/resolve/main/prompts.jsonl
fetch prompts/vicuna.jsonl $GITHUB/lm-sys/vicuna-blog-eval/HEAD/eval/table/question.jsonl
fetch prompts/koala.jsonl $GITHUB/arnav-gudibande/koala-test-set/HEAD/koala_test_set.jsonl
fetch prompts/self_instruct.jsonl \
    $GITHUB/yizhongw/self-instruct/HEAD/human_eval/user_oriented_instructions.jsonl
if [ "${1:-}" = --dialogues ]; then
    fetch sharegpt.json \
        $HUB/anon8231489123/ShareGPT_Vicuna_unfiltered/resolve/main/ShareGPT_V3_unfiltered_cleaned_split.json
    fetch hc3.jsonl $HUB/Hello-SimpleAI/HC3/resolve/main/all.jsonl
fi
