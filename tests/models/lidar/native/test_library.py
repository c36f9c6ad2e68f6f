"""Threads of the kernels and of torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from models.lidar.native import library
from models.lidar.native.library import threads, threads_for_points, torch_on_one_thread


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_torch_runs_on_one_thread_and_the_kernels_on_as_many_as_before() -> None:
    assert threads() == 3
    with torch_on_one_thread():
        assert (torch.get_num_threads(), threads()) == (1, 3)
        with torch_on_one_thread():
            assert (torch.get_num_threads(), threads()) == (1, 3)
        assert (torch.get_num_threads(), threads()) == (1, 3)
    assert (torch.get_num_threads(), threads()) == (3, 3)


def test_an_error_leaves_torch_as_it_was() -> None:
    with pytest.raises(KeyError), torch_on_one_thread():
        raise KeyError
    assert (torch.get_num_threads(), threads()) == (3, 3)


def test_points_take_torch_one_thread_where_the_kernels_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "kernels", lambda: object())
    with threads_for_points(torch.device("cpu")):
        assert (torch.get_num_threads(), threads()) == (1, 3)
    with threads_for_points(torch.device("cuda")):
        assert torch.get_num_threads() == 3
    monkeypatch.setattr(library, "kernels", lambda: None)
    with threads_for_points(torch.device("cpu")):
        assert torch.get_num_threads() == 3
