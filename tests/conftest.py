"""Options and shared fixtures.

8 virtual CPU devices; --data DIR for real data; --live for torch and transformers.
"""

import os
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

XLA_FLAGS = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    "--xla_cpu_collective_timeout_seconds=600",
)
for helper in ("numerics", "evaluations", "sandboxes", "dialogue_sources", "commands"):
    pytest.register_assert_rewrite(helper)


def pytest_addoption(parser):
    parser.addoption(
        "--data",
        metavar="DIR",
        help=(
            "folder of the public files that docs/files.md names: adds the tests on real data;"
            " with it a skip is a failure"
        ),
    )
    parser.addoption(
        "--smollm2",
        metavar="FILE",
        help="SmolLM2-135M-Instruct as a GGUF file: adds the tests on a real language model",
    )
    parser.addoption(
        "--live",
        action="store_true",
        help="also compare live with torch and transformers (requirements-compare.txt)",
    )


def pytest_configure(config):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Compiling is most of the tests' time: without LLVM's optimizations and XLA's fusion emitters a
    # step takes a third of it. A collective of eight virtual devices that waits for a core for 40 s
    # would end the process: on a busy machine it may wait longer.
    os.environ.setdefault("XLA_FLAGS", " ".join(XLA_FLAGS))
    # compiled programs are kept between runs, for the tests' own processes too; workers share
    # them, and an entry that a killed process left cut off is compiled again with a warning
    cache = pathlib.Path.home() / ".cache" / "mynah" / "xla-tests"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # pytest -n: this process only hands tests to its workers
    import jax

    jax.config.update("jax_num_cpu_devices", 8)
    # a silent broadcast is how masks and biases go wrong
    jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """With --data a skip is a failure, so that nothing is left out in silence.

    The tests of --live and --smollm2 need their own options.
    """
    report = (yield).get_result()
    if report.skipped and item.config.getoption("--data") and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if "--live" not in reason and "--smollm2" not in reason:
            report.outcome = "failed"
            report.longrepr = f"skipped although --data was given: {reason}"


@pytest.fixture(scope="session")
def data_dir(request):
    path = request.config.getoption("--data")
    if not path:
        pytest.skip("needs --data DIR")
    path = pathlib.Path(path).resolve()
    assert path.is_dir(), f"--data {path} is not a folder"
    return path


@pytest.fixture(scope="session")
def smollm2(request):
    path = request.config.getoption("--smollm2")
    if not path:
        pytest.skip("needs --smollm2 FILE")
    return pathlib.Path(path).resolve(strict=True)


@pytest.fixture(scope="session")
def live(request):
    if not request.config.getoption("--live"):
        pytest.skip("needs --live")
