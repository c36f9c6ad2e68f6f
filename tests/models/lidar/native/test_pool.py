"""The threads of the native kernels: every piece once, from several callers, and in a forked child."""

from __future__ import annotations

import ctypes
import multiprocessing
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from common import native
from models.lidar.native.library import FLAGS

PROBE = Path(__file__).with_name("pool_probe.cpp")

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler")


def squares(count: int, threads: int, flags: tuple[str, ...] = FLAGS) -> np.ndarray:
    out = np.full(count, -1, np.int64)
    library = native.load(PROBE, flags=flags)
    library.fill_squares(ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(count), ctypes.c_int(threads))
    return out


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 3, 10_000])
def test_every_piece_is_done_once_whatever_the_number_of_threads(count: int, threads: int) -> None:
    for _ in range(20):
        assert np.array_equal(squares(count, threads), np.arange(count) ** 2)


def test_callers_at_the_same_time_do_not_disturb_each_other() -> None:
    with ThreadPoolExecutor(4) as callers:
        results = list(callers.map(lambda n: squares(n, 3), [1000 + i for i in range(200)]))
    assert all(np.array_equal(found, np.arange(1000 + i) ** 2) for i, found in enumerate(results))


def _child(queue: multiprocessing.SimpleQueue) -> None:
    queue.put(bool(np.array_equal(squares(500, 3), np.arange(500) ** 2)))


def test_a_forked_child_has_threads_of_its_own() -> None:
    squares(500, 3)  # the parent's threads exist
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_child, args=(queue,))
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert queue.get() is True


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_sanitizers_find_nothing(sanitizer: str, tmp_path: Path) -> None:
    main = tmp_path / "main.cpp"
    main.write_text(
        textwrap.dedent(f"""
        #include "{PROBE}"
        #include <vector>
        int main() {{
            for (int round = 0; round < 2000; ++round) {{
                std::vector<int64_t> out(1 + round % 50);
                fill_squares(out.data(), out.size(), 1 + round % 5);
                for (size_t i = 0; i < out.size(); ++i) if (out[i] != int64_t(i * i)) return 1;
            }}
            return 0;
        }}
        """)
    )
    program = tmp_path / "main"
    compile_it = [
        "c++",
        "-std=c++17",
        "-O1",
        "-g",
        f"-fsanitize={sanitizer}",
        "-pthread",
        str(main),
        "-o",
        str(program),
    ]
    subprocess.run(compile_it, check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert sys.platform != "linux" or not done.stderr
