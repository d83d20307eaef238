"""With hanging calls the interpreter still ends, and a forked child still works."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import resilience
from builds import IS_EXPERIMENTAL

LIMIT = 60.0
"""Time limit of a test in seconds; a call that hangs in a child hangs for ever."""

PRELUDE = """
    import logging, os, sys, threading
    from resilience import (
        AllFailedError, AttemptTimeoutError, CircuitBreakerConfig, FallbackConfig, FallbackGroup,
        LLMFallback, STTFallback, State, TTSFallback, llm, stt, tts,
    )
    from resilience.testing import FakeLLM, FakeSession, FakeSTT, FakeTTS

    logging.getLogger("resilience").setLevel(logging.ERROR)
    for_ever = threading.Event()
    request = llm.CompletionRequest(messages=(llm.Message(role="user", content="Hello?"),))
    voice = tts.VoiceProfile(id="any")
    many = CircuitBreakerConfig(max_failures=10**6)
    short = FallbackConfig(circuit_breaker=many, attempt_timeout=0.01)
    long = FallbackConfig(circuit_breaker=many, attempt_timeout=30.0)
"""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def finish(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a new interpreter, which must end within the limit."""
    source = Path(resilience.__file__).parents[1]
    return subprocess.run(  # noqa: S603
        [sys.executable, "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": str(source), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def run(program: str) -> str:
    """Run a program that ends without an error, and return what it prints."""
    done = finish(program)
    assert done.returncode == 0
    assert done.stderr == "" or (IS_EXPERIMENTAL and is_about_finalizers(done.stderr))
    return done.stdout


def is_about_finalizers(stderr: str) -> bool:
    """Return whether each traceback is that of a finalizer whose module was cleared."""
    found_none = re.compile(r"(Attribute|Type)Error: 'NoneType' object .*")
    ignored = stderr.split("Exception ignored in: ")
    return ignored[0] == "" and all(map(found_none.search, ignored[1:]))


class TestExit:
    """The interpreter ends at once, whatever state its workers are in."""

    @pytest.mark.parametrize(
        "has_worker",
        [
            False,
            pytest.param(
                True,
                marks=pytest.mark.skipif(IS_EXPERIMENTAL, reason="finalizers do not work"),
            ),
        ],
    )
    def test_a_finalizer_that_makes_a_call(self, *, has_worker: bool) -> None:
        """A call with a limit while the interpreter ends does not wait for a thread."""
        said = run(f"""
            class Last:
                def __init__(self):
                    self.group = FallbackGroup("provider", "name", long)
                    self.call = lambda: self.group.execute(str)
                    if {has_worker}:
                        self.call()
                    self.print = print
                def __del__(self):
                    try:
                        self.call()
                    except RuntimeError as error:
                        self.print(type(error).__name__, self.group.breakers["name"].state)
            last = Last()
        """)

        assert said == "RuntimeError closed\n"

    def test_with_workers_that_hang(self) -> None:
        """With calls that hang for ever the interpreter ends, and prints nothing."""
        said = run("""
            hang = for_ever.wait
            model = LLMFallback(FakeLLM([hang, "late"]), "hung", short)
            model.add_fallback("backup", FakeLLM("in time"), attempt_timeout=0)
            ears = STTFallback(FakeSTT([hang, FakeSession()]), "hung", short)
            ears.add_fallback("backup", FakeSTT(FakeSession("heard")), attempt_timeout=0)
            speech = TTSFallback(FakeTTS([hang, b"late"]), "hung", short)
            speech.add_fallback("backup", FakeTTS(), attempt_timeout=0)
            for _ in range(10):
                assert model.complete(request).content == "in time"
                assert len(list(model.stream_completion(request))) == 3
                ears.start_stream(stt.StreamConfig()).close()
                assert b"".join(speech.synthesize_stream("Hello.", voice)) == b"Hello."
            hanging = sum(thread.name == "resilience-hung" for thread in threading.enumerate())
            print(10 < hanging <= 40)  # some may have been abandoned before they could hang
        """)

        assert said == "True\n"

    def test_with_idle_workers_and_open_streams(self) -> None:
        """With idle workers and unclosed streams and sessions the interpreter ends."""
        said = run("""
            model = LLMFallback(FakeLLM("in time, but unread"), "model", long)
            stream = model.stream_completion(request)
            session = STTFallback(FakeSTT(), "ears", long).start_stream(stt.StreamConfig())
            audio = TTSFallback(FakeTTS(), "voice", long).synthesize_stream(["One ", "two."], voice)
            print(next(stream).content, next(audio).decode())
        """)

        assert said == "in  One \n"

    def test_while_a_caller_waits(self) -> None:
        """While a daemon thread waits for a worker the interpreter ends."""
        said = run("""
            entered = threading.Event()
            def hang(provider):
                entered.set()
                for_ever.wait()
            group = FallbackGroup("hung", "hung", long)
            threading.Thread(target=group.execute, args=(hang,), daemon=True).start()
            print(entered.wait(30))
        """)

        assert said == "True\n"

    def test_by_an_error(self) -> None:
        """An uncaught error is printed, and functions registered with `atexit` are called."""
        done = finish("""
            import atexit
            atexit.register(print, "ended", flush=True)
            FallbackGroup("hung", "hung", short).execute(lambda provider: for_ever.wait())
        """)

        assert (done.returncode, done.stdout) == (1, "ended\n")
        assert done.stderr.splitlines()[-1] == (
            "resilience.exceptions.AllFailedError: all providers failed: "
            "hung: AttemptTimeoutError: 'hung' did not answer within 0.01 s"
        )


CHILD = """
    import traceback
    def in_child(work):
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work()
                sys.stdout.flush()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
"""


def run_forking(program: str) -> str:
    """Run a program that has a function `in_child`, and return what it and its children print."""
    return run(textwrap.dedent(CHILD) + textwrap.dedent(program))


@needs_fork
class TestFork:
    """A child has no threads of its parent, and starts its own."""

    def test_with_idle_workers(self) -> None:
        """A child whose parent has idle workers makes calls with workers of its own."""
        said = run_forking("""
            model = LLMFallback(FakeLLM("in time"), "model", long)
            def call():
                print(model.complete(request).content)
                print("".join(chunk.content for chunk in model.stream_completion(request)))
            call()
            for _ in range(3):
                in_child(call)
            call()
        """)

        assert said == "in time\n" * 10

    def test_with_several_idle_workers(self) -> None:
        """A child of a child makes calls too, with any number of idle workers in their parents."""
        said = run_forking("""
            group = FallbackGroup("provider", "name", long)
            barrier = threading.Barrier(8)
            def meet():
                group.execute(lambda provider: barrier.wait(30))
            threads = [threading.Thread(target=meet) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            def calls():
                workers = {group.execute(lambda p: threading.current_thread()) for _ in range(20)}
                print(len(workers), all(worker.is_alive() for worker in workers))
            in_child(lambda: (calls(), in_child(calls)))
            calls()
        """)

        assert said == "1 True\n" * 3

    def test_with_calls_that_hang_in_the_parent(self) -> None:
        """64 hanging calls prevent further ones in the parent, but not in the child."""
        said = run_forking("""
            hung = FallbackGroup("provider", "hung", short)
            def call(fn):
                try:
                    return hung.execute(fn)
                except AllFailedError as error:
                    return type(error.failures["hung"]).__name__
            for _ in range(64):
                assert call(lambda provider: for_ever.wait()) == "AttemptTimeoutError"
            called = []
            def answers():
                for _ in range(1000):  # the limit is short
                    call(lambda provider: called.append(provider))
                    if called:
                        break
                print(bool(called))
            in_child(answers)
            answers()
            hangs = [call(lambda provider: for_ever.wait()) for _ in range(2)]
            print(hangs == ["AttemptTimeoutError"] * 2)
        """)

        assert said == "True\nFalse\nTrue\n"

    def test_while_a_call_is_under_way(self) -> None:
        """A child that is forked while a call is under way works, and the call continues."""
        said = run_forking("""
            entered, over = threading.Event(), threading.Event()
            def wait(provider):
                entered.set()
                return over.wait(30)
            group = FallbackGroup("provider", "name", long)
            answers = []
            caller = threading.Thread(target=lambda: answers.append(group.execute(wait)))
            caller.start()
            assert entered.wait(30)
            in_child(lambda: print(group.execute(lambda provider: provider)))
            over.set()
            caller.join()
            print(*answers)
        """)

        assert said == "provider\nTrue\n"

    def test_from_within_a_worker(self) -> None:
        """A child that is forked by a provider can make calls."""
        said = run_forking("""
            group = FallbackGroup("provider", "name", long)
            def answer():
                print(group.execute(lambda provider: provider))
            print(group.execute(lambda provider: in_child(answer)))
            answer()
        """)

        assert said == "provider\nNone\nprovider\n"

    def test_a_child_that_hangs_ends(self) -> None:
        """A child with hanging calls ends as promptly as its parent."""
        said = run_forking("""
            def hang():
                group = FallbackGroup("provider", "hung", short)
                group.add_fallback("backup", "backup", attempt_timeout=0)
                def call(provider):
                    return provider if provider == "backup" else for_ever.wait()
                print(group.execute(call))
                print(group.breakers["hung"].state)
            hang()
            in_child(hang)
        """)

        assert said == "backup\nclosed\n" * 2

    @pytest.mark.skipif(IS_EXPERIMENTAL, reason="objects stay locked in a child")
    def test_while_threads_change_a_breaker(self) -> None:
        """A child does not wait for a lock that its parent held, and its listener is called."""
        said = run_forking("""
            import random
            from resilience import CircuitBreaker, CircuitOpenError
            changes = []
            breaker = CircuitBreaker(CircuitBreakerConfig(
                max_failures=2, reset_timeout=0.0005, half_open_max=1,
                on_state_change=lambda change: changes.append(change) if len(changes) < 5 else None,
            ))
            logging.getLogger("resilience").setLevel(logging.CRITICAL)
            sys.setswitchinterval(1e-4)
            over = threading.Event()
            def fail():
                raise ConnectionError
            def use(fn):
                try:
                    breaker.execute(fn)
                except (ConnectionError, CircuitOpenError):
                    pass
            def work():
                luck = random.Random()
                while not over.is_set():
                    use(str if luck.random() < 0.6 else fail)
            threads = [threading.Thread(target=work) for _ in range(3)]
            for thread in threads:
                thread.start()
            def child():
                import signal
                signal.alarm(20)
                changes.clear()
                breaker.reset()
                use(fail)
                use(fail)
                breaker.isolate()
                breaker.reset()
                assert changes, "no listener was called"
                breaker.execute(str)
            try:
                for _ in range(60):
                    in_child(child)
            finally:
                over.set()
            print("ok")
        """)

        assert said == "ok\n"

    def test_in_a_listener(self) -> None:
        """In a child that is forked by a listener, later changes are delivered too."""
        said = run_forking("""
            from resilience import CircuitBreaker
            changes = []
            def listen(change):
                changes.append(str(change.new))
                if len(changes) == 1:
                    in_child(child)
            def child():
                breaker.reset()
            breaker = CircuitBreaker(CircuitBreakerConfig(on_state_change=listen))
            breaker.isolate()
            def other():
                breaker.reset()
                breaker.isolate()
                print(changes)
            in_child(other)
        """)

        assert said == "['open', 'closed', 'open']\n"

    def test_while_a_text_and_a_stream_are_read(self) -> None:
        """A text that another thread reads ends in the child; new texts are synthesised there."""
        said = run_forking("""
            entered, over = threading.Event(), threading.Event()
            def text():
                yield "One "
                entered.set()
                over.wait(30)
                yield "two."
            speaker = TTSFallback(FakeTTS(), "voice", long)
            audio = speaker.synthesize_stream(text(), voice)
            heard = []
            reader = threading.Thread(target=lambda: heard.extend(audio))
            reader.start()
            assert entered.wait(30)
            def child():
                audio.close()
                print(b"".join(speaker.synthesize_stream("new", voice)).decode())
                speaker.add_fallback("another", FakeTTS())
            in_child(child)
            over.set()
            reader.join()
            print(b"".join(heard).decode())
        """)

        assert said == "new\nOne two.\n"


@needs_fork
@pytest.mark.parametrize(
    "lock", ["text.changed", "breaker._events._lock", "group._lock", "stream_module._shared.lock"]
)
def test_a_lock_that_another_thread_holds(lock: str) -> None:
    """Each lock for which a thread may wait is replaced in a child."""
    said = run_forking(f"""
        from resilience._adapters.text import ReplayBuffer
        from resilience._failover import stream as stream_module
        text = ReplayBuffer(["One"])
        group = FallbackGroup("provider", "name")
        breaker = group.breakers["name"]
        held, over = threading.Event(), threading.Event()
        def hold():
            with {lock}:
                held.set()
                over.wait(30)
        holder = threading.Thread(target=hold)
        holder.start()
        assert held.wait(30)
        def child():
            import signal
            signal.alarm(20)
            print(next(text.reader()))
            text.close()
            assert list(group.stream(iter)) == list("provider")
            group.add_fallback("another", "provider")
            breaker.isolate()
        in_child(child)
        over.set()
    """)

    assert said == "One\n"
