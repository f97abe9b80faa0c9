"""Every weight has its name in other projects' files, and no two weights share a place there."""

import dataclasses

import pytest

import model
from checkpoint.names import file_names


@pytest.mark.parametrize("preset", model.PRESETS)
@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_has_one_place_in_a_hugging_face_file_and_in_a_stream(preset, tied):
    config = dataclasses.replace(model.PRESETS[preset], tied=tied)
    names = file_names(config)
    assert list(names) == list(model.weight_table(config))
    for field in ("hf", "easylm"):
        # EasyLM's models have neither Qwen2's biases nor Qwen3's norms
        there = {n: row for n, row in names.items() if getattr(row, field) is not None}
        assert field == "easylm" or there == names
        assert there == names or config.qkv_bias or config.qk_norm
        places = [(getattr(row, field), row.part) for row in there.values()]
        assert len(places) == len(set(places))
        for name, row in there.items():
            layered = model.weight_table(config)[name].layered
            assert ("{}" in getattr(row, field)) == layered, name


def test_a_weight_without_a_name_raises(monkeypatch):
    table = model.weight_table
    row = table(model.PRESETS["tiny"])["wo"]
    monkeypatch.setattr(model, "weight_table", lambda config: table(config) | {"stray": row})
    with pytest.raises(KeyError, match="stray"):
        file_names(model.PRESETS["tiny"])
