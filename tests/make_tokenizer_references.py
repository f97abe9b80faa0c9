"""Make references/tokenizer.json: ids by Hugging Face's tokenizers, for tests/text.

    python tests/make_tokenizer_references.py --data DIR      # needs requirements-compare.txt

Nothing of ../tokenizer.py's export is used: GPT-2 is transformers' GPT2Tokenizer on the two files;
Llama-3 is transformers' TikTokenConverter; LLaMA is the pipeline of its published tokenizer.json
(Prepend and Replace of U+2581, byte fallback) over the merges that transformers makes of the
pieces' scores. (LlamaTokenizer of transformers 5.23, given a bare tokenizer.model, orders the
merges by id instead: it cuts indented code and a leading space otherwise than SentencePiece and
than the published file.) Stored: ids of the toy tokenizers' texts, and for the real ones a hash of
all ids of each file.
"""

import argparse
import json
import pathlib
import sys
import tempfile

import sentencepiece
import tokenizers
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers.convert_slow_tokenizer import TikTokenConverter, generate_merges

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "text"), str(HERE.parent)]
import toy_tokenizers as cases  # noqa: E402

from text.tokenizer import load  # noqa: E402


def hf_llama(path):
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = [model.id_to_piece(i) for i in range(model.vocab_size())]
    other = {
        i
        for i in range(len(pieces))
        if model.is_byte(i) or model.is_control(i) or model.is_unknown(i)
    }
    normal = {p: i for i, p in enumerate(pieces) if i not in other}
    merges = generate_merges(normal, {p: model.get_score(i) for p, i in normal.items()})
    hf = Tokenizer(
        models.BPE(
            {p: i for i, p in enumerate(pieces)},
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    hf.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    hf.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    hf.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=hf, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def hf_gpt2(vocab, merges):
    return transformers.GPT2Tokenizer(vocab=str(vocab), merges=str(merges))


def hf_llama3(path):
    hf = TikTokenConverter(
        str(path), extra_special_tokens=["<|begin_of_text|>", "<|end_of_text|>"]
    ).converted()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=hf, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"
    )


def main():
    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args.add_argument(
        "--data",
        required=True,
        type=pathlib.Path,
        help="folder with text/, dialogues/ and tokenizers/",
    )
    data = args.parse_args().data
    versions = {m.__name__: m.__version__ for m in (transformers, tokenizers, sentencepiece)}
    print(*(f"{name} {version}" for name, version in versions.items()))
    makers = {"sentencepiece": hf_llama, "gpt2": hf_gpt2, "llama3": hf_llama3}

    def encoder(tok):
        hf = makers[tok.kind](*tok.files)
        return lambda text: hf.encode(text, add_special_tokens=False, split_special_tokens=True)

    out = {"versions": versions, "toys": {}, "real": {}}
    with tempfile.TemporaryDirectory() as folder:
        for kind, write in cases.WRITERS.items():
            tok = load(write(pathlib.Path(folder) / kind))
            encode = encoder(tok)
            out["toys"][kind] = {
                "fingerprint": tok.fingerprint,
                "ids": [encode(text) for text in cases.TEXTS],
            }
    for name, path in cases.REAL.items():
        tok = load(data / path)
        encode = encoder(tok)
        files = {file: cases.digest(texts, encode) for file, texts in cases.data_texts(data)}
        out["real"][name] = {"fingerprint": tok.fingerprint, "files": files}
        print(name, sum(count for count, _ in files.values()), "ids")
    cases.REFERENCES.parent.mkdir(exist_ok=True)
    cases.REFERENCES.write_text(
        json.dumps(out).replace('], "', '],\n"').replace('}, "', '},\n"') + "\n", encoding="utf-8"
    )
    print(f"wrote {cases.REFERENCES}")


if __name__ == "__main__":
    main()
