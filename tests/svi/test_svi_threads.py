"""Threads and forks: Pyro's parameters and handlers are one for a process, so fits take turns."""

import os
import threading
import time

import pyro
import pytest
import torch
from svi_cases import auto, data, normal_model, same

from pyro_zilognormal.svi import fit


def plain(steps=30, callbacks=(), seed=0):
    return fit(normal_model, auto(), data(), steps=steps, callbacks=callbacks, seed=seed)


def in_thread(function):
    """Run a function in another thread, and return it and a list that gets its result or error."""
    found = []

    def run():
        try:
            found.append(function())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def test_fits_in_threads_take_turns():
    threads = [in_thread(lambda: plain(200)) for _ in range(3)]
    for thread, found in threads:
        thread.join()
        same(found[0], plain(200))


@pytest.mark.parametrize("statement", [lambda: pyro.param("alien", torch.tensor(1.0)), lambda: normal_model(data())])
def test_statements_of_pyro_in_another_thread_are_refused(statement):
    refused = []

    def elsewhere(run):
        thread, found = in_thread(statement)
        thread.join()
        refused.extend(found)

    result = plain(2, [elsewhere])
    assert all(isinstance(error, RuntimeError) and "another thread fits" in str(error) for error in refused)
    assert len(refused) == 2
    assert "alien" not in {*result.params, *pyro.get_param_store()}
    same(plain(2), result)


def test_a_child_that_is_forked_while_a_thread_fits_can_fit():
    pyro.param("before", torch.tensor(1.0))
    started, go_on = threading.Event(), threading.Event()

    def hold(run):
        started.set()
        go_on.wait(60)

    thread, found = in_thread(lambda: plain(1, [hold]))
    try:
        assert started.wait(60)
        child = os.fork()
        if child == 0:  # the child has no use for pytest
            try:
                plain(3)
                os._exit(0 if list(pyro.get_param_store()) == ["before"] else 3)
            finally:
                os._exit(4)
        deadline, ended = time.monotonic() + 30, (0, 0)
        while ended[0] == 0 and time.monotonic() < deadline:
            ended = os.waitpid(child, os.WNOHANG)
            time.sleep(0.01)
        assert ended == (child, 0)
    finally:
        go_on.set()
        thread.join()
        pyro.clear_param_store()
    same(found[0], plain(1))
