"""LAPACK runs on one thread inside a run, and on as many as before outside."""

import os

import pytest
from threadpoolctl import threadpool_info

from manifolds.support import threads
from manifolds.support.precision import working_precision


def blas_threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@pytest.fixture
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in threads._CHOSEN_BY:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.skipif(os.cpu_count() == 1, reason="one core has one thread")
@pytest.mark.usefixtures("nothing_chosen")
def test_one_thread_inside_and_as_before_outside() -> None:
    threads._controller()
    before = blas_threads()
    with working_precision("float64"):
        assert blas_threads() == [1] * len(before)
    assert before
    assert blas_threads() == before


@pytest.mark.usefixtures("nothing_chosen")
def test_who_has_chosen_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    before = blas_threads()
    with working_precision("float64"):
        assert blas_threads() == before


@pytest.mark.skipif(os.cpu_count() == 1, reason="one core has one thread")
@pytest.mark.usefixtures("nothing_chosen")
def test_overlapping_contexts_leave_as_many_threads_as_before() -> None:
    """Two threads of a program that compute at once: the first to start is the first to end."""
    threads._controller()
    before = blas_threads()
    first, second = threads.single_threaded_lapack(), threads.single_threaded_lapack()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert blas_threads() == [1] * len(before)
    second.__exit__(None, None, None)
    assert blas_threads() == before
