"""Dialogues in every public form, tokenizers of any model, rows of ids, packed directories."""

TOKENIZER_PATHS = "tokenizer.model, tokenizer.json, a GGUF file, or a folder that holds a tokenizer"
