"""What all tests share: run-time shape checks on the whole package, threads kept few, data, networks, processes."""

import gc
import inspect
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["OFFRAMP_STATE"] = tempfile.mkdtemp(prefix="offramp-state-")  # what tests train is trusted in tests alone

FLAGS = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else "avx512f vnni"
if "avx512f" not in FLAGS:  # see "Known problems" in docs/reliability.md: networks of tests are narrow enough
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX")

import pytest  # noqa: E402

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "nets")]  # for `forked` and `shape_checks`; networks of tests

import shape_checks  # noqa: E402

shape_checks.install()

ALONE = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in ("torch", "pyarrow", "jaxtyping", "yaml", "onnx", "onnxscript", "safetensors", "lightning_fabric"):
            raise ImportError(f"{name} does not exist here")
sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(scope="session")
def integer_kernels() -> None:
    """For tests of int8: ONNX Runtime's sums overflow on processors without VNNI, where exporting int8 is refused."""
    if "vnni" not in FLAGS:
        pytest.skip("needs a processor with VNNI instructions")


@pytest.fixture
def cifar100_dir() -> Path:
    """The CIFAR-100 shards under $OFFRAMP_DATA; the test is skipped, visibly, where they are not."""
    root = os.environ.get("OFFRAMP_DATA")
    folder = Path(root) / "cifar100" if root else None
    if folder is None or not folder.is_dir():
        pytest.skip("needs CIFAR-100 in $OFFRAMP_DATA/cifar100")
    return folder


@pytest.fixture(scope="session")
def my_nets() -> Iterator[str]:
    """The name of a module with networks as a user might have written them: `nets/my_nets.py`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tests" / "nets")
        yield "my_nets"


@pytest.fixture(scope="module")
def forked_origin() -> Iterator[None]:
    """The process that `compare` and `reproduce` fork runs from is forked itself: 0.1 CPU seconds instead of 4."""
    import forked

    from offramp.engine import preloaded

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preloaded, "subprocess", forked.fork_origins())
        yield


@pytest.fixture
def short_resnet18(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block in each stage of `resnet18`, in this process: half of the time of a walk from `train` to `export`."""
    from offramp.models import resnet

    monkeypatch.setitem(resnet._BLOCKS, "resnet18", (1, 1, 1, 1))


@pytest.fixture
def traceable_msdnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of MSDNet without the checks of types and shapes, which only tests have and which refuse fx proxies."""
    from offramp.models._msdnet_layers import FirstLayer, Layer, Transition

    for layer in (FirstLayer, Layer, Transition):
        monkeypatch.setattr(layer, "forward", inspect.unwrap(layer.forward))


@pytest.fixture
def without_torch() -> Callable[..., str]:
    """Runs a program where neither torch nor anything else exists that answering does not need: what it printed."""

    def run(program: str, *words: object) -> str:
        command = [sys.executable, "-W", "error", "-c", ALONE + program, *map(str, words)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
        assert ran.returncode == 0 and not ran.stderr, ran.stderr
        return ran.stdout

    return run


LONG = (
    *("contract/test_training.py", "cuda/test_cuda.py", "cli/test_compare.py", "early_exit/test_same_answer.py"),
    *("papers/test_reproduce.py", "test_readme.py", "test_snippets.py", "split/test_models.py"),
    *("train/test_loop.py", "train/test_step_trainer.py"),
)
"""Files of tests that take ten CPU seconds or more: they begin, so that short ones are left to share at the end."""


def pytest_configure(config: pytest.Config) -> None:
    """Workers of pytest-xdist fork processes from one that they share: each would spend four CPU seconds on its own."""
    if getattr(config.option, "numprocesses", None):
        import forked

        forked.share()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Nothing is garbage while all packages are imported, but looking for it takes a tenth of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests begin; those for a real GPU are skipped, visibly, where there is none."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONG))
    for_gpus = [item for item in items if item.get_closest_marker("gpu")]
    if not for_gpus:
        return
    import torch

    if not torch.cuda.is_available():
        for item in for_gpus:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU; benchmarks/gpu_all.py runs these tests there"))


def pytest_collection_finish() -> None:
    """The garbage collector leaves out what was imported, a million objects, and runs less often."""
    gc.freeze()
    gc.set_threshold(7000, 20, 20)
