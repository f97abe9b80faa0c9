"""The toy tokenizers, as fixtures."""

import pytest
from toy_tokenizers import KINDS, WRITERS

from text.tokenizer import load


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """dict kind -> Tokenizer with role tokens."""
    root = tmp_path_factory.mktemp("toys")
    return {kind: load(write(root / kind)) for kind, write in WRITERS.items()}


@pytest.fixture(params=KINDS)
def toy(request, toys):
    return toys[request.param]
