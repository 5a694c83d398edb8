"""Kernels beside other threads, forks, torch and Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from satclip_engine import load
from satclip_engine._forks import Mutex
from satclip_engine.backends.protocols import Call

PLACES = np.stack([np.linspace(-180, 180, 3000), np.linspace(-90, 90, 3000)], 1)


def run_python(code: str, **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120, **kwargs
    )


def test_four_python_threads_at_once_get_the_single_threaded_result():
    enc = load()
    expected = enc(PLACES)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: load(threads=3)(PLACES), range(8)):
            assert np.array_equal(result, expected)
        for result in pool.map(lambda _: enc(PLACES), range(8)):
            assert np.array_equal(result, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_computes_after_its_parent_did():
    enc = load(threads=2)
    expected = enc(PLACES)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(enc(PLACES), expected) else 1)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the child did not finish: threads did not survive the fork")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_children_forked_while_a_thread_computes_never_hang():
    enc, forks = load("default-l10", threads=1), 25
    grid = enc.grid(resolution=30)
    expected = grid.sel(band=["e007", "e002"]).values
    stopped = threading.Event()

    def compute() -> None:
        random = np.random.default_rng(0)
        while not stopped.is_set():  # another selection each time: prepared, hashed and put into caches anew
            bands = random.permutation(256)[:2].tolist()
            load("default-l10", threads=1).grid(resolution=30, bands=bands).compute()

    threads = [threading.Thread(target=compute) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(forks):
            child = os.fork()
            if child == 0:
                signal.alarm(20)  # which ends the child, hanging or not
                with contextlib.suppress(BaseException):
                    values = enc.grid(resolution=30, bands=["e007", "e002"]).values
                    hashes = {enc.sha256, enc.select("3-4").sha256, load("default-l10").sha256}
                    os._exit(0 if np.array_equal(values, expected) and len(hashes) == 2 else 1)
                os._exit(2)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_of_a_thread_that_holds_a_lock_finds_it_open():
    mutex = Mutex()
    with mutex:
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            with mutex:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_import_in_a_subinterpreter_is_refused_instead_of_waiting_for_ever():
    interpreters = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    code = f"""
        import {interpreters} as interpreters
        script = '''
        try:
            import satclip_engine._C
        except ImportError as error:
            print(error, flush=True)
        '''
        import textwrap
        interpreters.run_string(interpreters.create(), textwrap.dedent(script))
        import satclip_engine._C
        print("imported in the main one", flush=True)
    """
    done = run_python(code)
    refusal, imported = done.stdout.splitlines()
    assert "main interpreter of a process only" in refusal or "subinterpreter" in refusal
    assert imported == "imported in the main one"


@pytest.mark.parametrize(
    "order", ["import torch; import satclip_engine as se", "import satclip_engine as se; import torch"]
)
def test_torch_may_be_imported_before_or_after(order):
    pytest.importorskip("torch")
    done = run_python(
        f"""
        {order}
        import numpy as np
        places = np.stack([np.linspace(-180, 180, 999), np.linspace(-90, 90, 999)], 1)
        enc = se.load(threads=2)
        first = enc(places)
        torch.randn(300, 300) @ torch.randn(300, 300)
        assert np.array_equal(enc(places), first)
        print("same")
        """
    )
    assert done.stdout.strip() == "same", done.stderr


@pytest.mark.parametrize("call", ["enc(places)", "enc.evaluate(grid)"])
@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_stops_a_long_call_within_a_second(call, threads):
    code = f"""
        import sys, time
        import numpy as np
        import satclip_engine as se
        from satclip_engine.geo.grid import make_grid
        enc = se.load(threads={threads}).with_head(np.ones((1, 256)))
        grid = make_grid(resolution=0.01, bounds=(0, 0, 360, 40))
        places = np.tile(np.array([[1.0, 2.0], [3.0, 4.0]]), (10_000_000, 1))
        enc(places[:10])
        print("ready", flush=True)
        try:
            {call}
        except KeyboardInterrupt:
            print("interrupted", time.time(), flush=True)
        """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        time.sleep(1.0)
        sent = time.time()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    word, when = out.split()
    assert word == "interrupted"
    # A second, with room for a busy machine: the work itself would take many minutes.
    assert float(when) - sent < 5.0


@pytest.mark.parametrize("call", ["encode", "encode_grid"])
def test_what_a_check_raises_ends_a_call_in_any_thread(call):
    class Enough(Exception):
        pass

    calls = []

    def check():
        calls.append(threading.current_thread())
        if len(calls) == 3:
            raise Enough

    prepared = load(threads=2).network
    axes = np.linspace(-80, 80, 100_000), np.linspace(0, 300, 100)
    places = np.tile([[1.0, 2.0]], (10_000_000, 1))
    arguments = (places,) if call == "encode" else axes

    def work():
        shape = (len(places), 256) if call == "encode" else (*map(len, axes), 256)
        out = np.empty(shape, np.float32)  # untouched pages cost nothing
        getattr(prepared, call)(*arguments, out=out, call=Call(check=check))

    with ThreadPoolExecutor(1) as pool, pytest.raises(Enough):
        pool.submit(work).result()
    assert len(calls) == 3
    assert threading.main_thread() not in calls


def test_signals_that_follow_the_one_that_stopped_a_call_wait_for_it_to_return():
    # Threads finish at different times: while the last is waited for, no handler may run over a raised
    # exception.
    done = run_python(
        """
        import signal, time
        import numpy as np
        from satclip_engine import _C
        weights = [np.zeros((1024, 40000), np.float32), np.zeros((4, 1024), np.float32)]
        net = _C.Network(200, weights, [np.zeros(1024), np.zeros(4)], "baseline")
        times = []
        def on_alarm(*_):
            times.append(time.time())
            if len(times) == 1:
                raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, on_alarm)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        try:
            net.encode(np.zeros((768, 2)), np.empty((768, 4), np.float32), 16)
        except BaseException as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            print(repr(error))
        """
    )
    assert done.stdout.strip() == "KeyboardInterrupt()", done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits address space as Linux does")
def test_without_room_for_more_threads_those_there_are_do_the_work():
    done = run_python(
        """
        import resource
        import numpy as np
        import satclip_engine as se
        enc = se.load(threads=60)
        places = np.stack([np.linspace(-180, 180, 9000), np.linspace(-90, 90, 9000)], 1)
        expected = enc(places)
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        limit = used + (120 << 20)  # for the result and 60 threads' buffers, not for 60 stacks
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        assert np.array_equal(enc(places), expected)
        print("same")
        """
    )
    assert done.stdout.strip() == "same", done.stderr


def test_no_thread_is_left_running_after_a_call():
    done = run_python(
        """
        import os
        import numpy as np
        import satclip_engine as se
        enc = se.load(threads=4)
        before = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
        enc(np.zeros((5000, 2)))
        after = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
        print(after - before)
        """
    )
    assert done.stdout.strip() == "0", done.stderr
