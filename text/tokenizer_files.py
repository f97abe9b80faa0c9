"""Where a tokenizer lies: which files of a folder are it, and what the folder says of it."""

import dataclasses
from pathlib import Path

from text import gguf_header, gguf_tokenizer, tokenizer_settings
from text.byte_pairs import BytePairs, gpt2, is_ranks, llama3, read_merges, read_vocabulary
from text.pieces import SentencePiece, is_sentencepiece
from text.tokenizer_json import JsonEncoder, is_llama3, is_pair
from text.tokenizer_settings import Settings

PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))  # GPT-2's files
Encoder = SentencePiece | BytePairs | JsonEncoder


@dataclasses.dataclass
class Source:
    """The files of a tokenizer, and what the folder says of it."""

    files: list[Path]
    contents: list[bytes]
    settings: Settings

    def encoder(self) -> Encoder:
        """What encodes with these files, told apart by content."""
        first = self.contents[0]
        if len(self.files) == 2:
            return gpt2(self.files, self.contents)
        if is_ranks(first):
            return llama3(self.files[0], first)
        if is_sentencepiece(first):
            return SentencePiece(self.files[0], first)
        return JsonEncoder(self.files[0], first)


def find(path: str | Path) -> Source:
    """The tokenizer at a path: a file, or a folder; ValueError, one line, where there is none."""
    path = Path(path)
    if not path.exists():
        raise ValueError(
            f"tokenizer {path} does not exist: name a tokenizer.model or tokenizer.json, or a "
            "folder holding one, or encoder.json + vocab.bpe (vocab.json + merges.txt)"
        )
    if path.is_file() and gguf_header.is_gguf(path):
        contents, settings = gguf_tokenizer.read(path)
        names = [name for name in contents if name not in settings]
        stated = tokenizer_settings.of_files(settings, path)
        return Source([path / n for n in names], [contents[n] for n in names], stated)
    files = find_file(path) if path.is_file() else find_in_folder(path)
    folder = files[0].parent
    # Llama-3's own file lies one level below what the folder says of it
    folder = folder.parent if folder.name == "original" else folder
    settings = tokenizer_settings.of_folder(folder)
    listed = folder / "tokenizer.json"
    if listed.is_file() and listed not in files:
        for token in json_of(listed).get("added_tokens") or []:
            fields = (token.get("content"), token.get("id"), bool(token.get("special")))
            tokenizer_settings.add(settings, *fields, str(listed))
    if [f.name for f in files] == list(PAIRS[0]) and not listed.is_file():
        check_gpt2(files, settings)
    return Source(files, [f.read_bytes() for f in files], settings)


def find_file(path: Path) -> list[Path]:
    """The files of the tokenizer that a file is, or is one half of."""
    if is_model(path) or path.name == "tokenizer.json":
        return [path]
    for pair in pairs_in(path.parent):
        if path in pair:
            return pair
    raise ValueError(
        f"tokenizer {path} is neither a SentencePiece model nor a file of ranks, a tokenizer.json, "
        "a GGUF file, nor one of the pairs encoder.json + vocab.bpe or vocab.json + merges.txt: "
        "name one of these"
    )


def find_in_folder(path: Path) -> list[Path]:
    """The files of a folder's tokenizer: [vocabulary, merges], [model] or [tokenizer.json].

    A SentencePiece model, Llama-3's ranks and GPT-2's pair are read by their own libraries where a
    tokenizer.json beside them says the same; else the tokenizer.json wins over the pair.
    """
    for folder in (path, path / "tokenizer", path / "original"):
        named = folder / "tokenizer.model"
        models = [named] if named.is_file() else sorted(folder.glob("*.model"))
        models, pairs = [[f] for f in models if is_model(f)], pairs_in(folder)[:1]
        listed = folder / "tokenizer.json"
        if listed.is_file() and len(models) < 2:
            return beside_json(listed, models, pairs)
        candidates = models + pairs
        if len(candidates) > 1:
            names = ", ".join("+".join(f.name for f in files) for files in candidates)
            raise ValueError(
                f"tokenizer {folder} holds {len(candidates)} tokenizers ({names}): name one of the "
                "files"
            )
        if candidates:
            return candidates[0]
    halves = {name for pair in PAIRS for name in pair} & {f.name for f in path.iterdir()}
    if halves:
        raise ValueError(
            f"tokenizer {path} holds {', '.join(sorted(halves))} without its other half: "
            "encoder.json goes with vocab.bpe, vocab.json with merges.txt"
        )
    raise ValueError(
        f"tokenizer {path} holds no tokenizer: it needs tokenizer.model, tokenizer.json, "
        "encoder.json + vocab.bpe or vocab.json + merges.txt (or name another with --tokenizer)"
    )


def beside_json(listed: Path, models: list[list[Path]], pairs: list[list[Path]]) -> list[Path]:
    """The files to read where a folder has a tokenizer.json."""
    ranks = listed.parent / "original" / "tokenizer.model"
    if models:
        return models[0]
    data = json_of(listed)
    if pairs and is_pair(data, pairs[0]):
        return pairs[0]
    if ranks.is_file() and is_model(ranks) and is_llama3(data):
        return [ranks]
    return [listed]


def json_of(path: Path) -> dict:
    """The object in a tokenizer.json; ValueError in one line where it is none."""
    return tokenizer_settings.record(path.read_bytes(), str(path))


def is_model(path: Path) -> bool:
    """Whether a file is a SentencePiece model or Llama-3's ranks."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(4096)
    return is_sentencepiece(head) or is_ranks(head)


def pairs_in(folder: Path) -> list[list[Path]]:
    """GPT-2's file pairs in a folder."""
    pairs = [[folder / name for name in pair] for pair in PAIRS]
    return [pair for pair in pairs if all(f.is_file() for f in pair)]


def check_gpt2(files: list[Path], settings: Settings) -> None:
    """ValueError unless vocab.json + merges.txt, alone, are known to cut text as GPT-2 does.

    Many models keep their byte pairs in files of these names and cut text otherwise, which would
    give other ids without a word. GPT-2's own vocabulary says so by its size and its end; another's
    where the folder names GPT-2's tokenizer and a merge joins digits, which the other patterns keep
    apart.
    """
    vocab = read_vocabulary(files[0], files[0].read_bytes())
    merges = read_merges(files[1], files[1].read_bytes())
    if len(vocab) == 50257 and vocab.get("<|endoftext|>") == 50256:
        return
    names_gpt2 = settings.model_type == "gpt2" or settings.tokenizer_class in (
        "GPT2Tokenizer",
        "GPT2TokenizerFast",
    )
    joins_digits = any(
        (a + b).lstrip("Ġ").isdigit() and len((a + b).lstrip("Ġ")) > 1 for a, b in merges
    )
    if names_gpt2 and joins_digits and not settings.add_prefix_space:
        return
    why = "nothing beside them says that it is GPT-2's"
    if settings.add_prefix_space:
        why = "tokenizer_config.json says add_prefix_space true, which is not GPT-2's"
    elif names_gpt2:
        why = "no merge joins two digits, so that its digits may be cut apart, unlike GPT-2's"
    raise ValueError(
        f"tokenizer {files[0]} + merges.txt do not tell how text is cut before merging, and {why}: "
        "copy the folder's tokenizer.json too"
    )
