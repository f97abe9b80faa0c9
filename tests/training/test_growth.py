"""bench/growth.py chooses meshes that fit and says why more devices stop helping; bench/gpu.py
measures what its plan says fits.

python -m pytest tests/training/test_growth.py
"""

import importlib.util
import pathlib
import sys

import pytest

import model
from training import plan

BENCH = pathlib.Path(__file__).resolve().parents[2] / "bench"


def load(name):
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


growth, gpu = load("growth"), load("gpu")


def test_the_mesh_fits_and_no_time_is_below_the_plans():
    config, v5p = model.preset("llama-7b"), plan.DEVICES["v5p"]
    for chips in growth.CHIPS:
        found, least = growth.best(config, v5p, chips, growth.ROWS, 0.5)
        data, tensor = map(int, found.mesh.split("x"))
        assert (
            data * tensor == chips
            and growth.ROWS % data == 0
            and config.N % tensor == 0
            and least <= found.memory < v5p.memory
        )
        assert found.assumed >= found.least == max(found.arithmetic, found.wire)
    eight = growth.best(config, v5p, 8, growth.ROWS, 0.5)[0]
    assert (
        eight.mesh == "8x1"
        and eight.why == "arithmetic"
        and eight.arithmetic == pytest.approx(3587.6 / 8 / 459, rel=1e-4)
    )


def test_what_does_not_fit_is_no_mesh_but_a_need():
    found, least = growth.best(model.preset("llama-65b"), plan.DEVICES["H100"], 8, 32, 0.5)
    assert found is None and least > 65.2e9 * 16 / 8  # float32 weights, two moments and gradients
    assert growth.best(model.preset("llama-30b"), plan.DEVICES["v5p"], 1024, 32, 0.5) == (
        None,
        None,
    )  # 32 rows x 32 ranks, but 52 heads


def test_servers_share_a_network_that_a_slice_does_not_have():
    """Strong scaling of 7B: H100s are held up by the weights' bytes between servers, one slice of
    TPUs by the tensor axis, much later.
    """
    config = model.preset("llama-7b")
    words = {
        name: growth.stops(
            {n: growth.best(config, plan.DEVICES[name], n, 32, 0.5)[0] for n in growth.CHIPS}
        )
        for name in ("H100", "v5p")
    }
    assert words["H100"].startswith("helps up to 32;") and "weights' traffic" in words["H100"]
    assert words["v5p"].startswith("helps up to 512;") and "tensor traffic" in words["v5p"]


@pytest.mark.parametrize("models", [["llama-7b"], ["llama-7b", "llama-65b"]])
def test_the_tables_are_markdown_with_a_cell_for_every_count(models, capsys):
    assert growth.main(["--models", *models]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 3 * (2 + 2 * len(models)) and {row.count("|") for row in rows} == {
        len(growth.CHIPS) + 2
    }


@pytest.mark.parametrize("card, refused", [("H100", {"7b"}), ("H200", set())])
def test_a_card_gets_what_the_plan_fits_into_it(card, refused, monkeypatch):
    """Every case of ours is started where its plan is below the card's room, and else is a row that
    says so; each model comes once before its variants.
    """
    monkeypatch.setattr("sys.path", [*sys.path, str(BENCH)])
    room, started = plan.DEVICES[card].memory * gpu.ROOM, []
    monkeypatch.setattr(gpu, "start", lambda case, alone=True: started.append(case))
    monkeypatch.setattr(gpu, "finish", lambda process, case, seconds: {"failed": ""})
    results = list(gpu.run_all(gpu.timed(12), lambda: 1e9, room, "gpu"))
    ours = [r for r in results if r["planned"] is not None]
    assert {r["case"]["config"] for r in ours} == {"1.3b", "smollm2-135m", "7b/16", "7b"}
    for result in ours:
        fits = result["planned"] < room
        assert fits == (result["case"] in started) == (result["failed"] == "")
        assert fits or result["failed"].startswith("plan: needs")
    assert {r["case"]["config"] for r in ours if r["planned"] >= room} == refused
    steps = [c for c in gpu.timed(12) if c["kind"] == "step" and c["config"] == "1.3b"]
    assert [c["program"] for c in steps[:2]] == ["ours", "transformers"]
    assert {c["batch"] for c in steps[:2]} == {8}
