"""Contract tests of a language model."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from typing_extensions import override

from resilience import llm
from resilience.testing._contract_answers import (
    check_response,
    check_tool_calls,
    excluded_requests,
    join_chunks,
)
from resilience.testing._contract_base import CUT, FOREIGN, UNREACHABLE, skip
from resilience.testing._contract_calls import UNSUPPORTED, fail, read_all
from resilience.testing._contract_streams import StreamContract
from resilience.testing._contract_values import check_value


class LLMProviderContract(StreamContract[llm.Provider, llm.Chunk]):
    """Tests of a language model: what `llm.Provider` promises.

    Derive a class from it, and override at least `make_provider` and `make_broken_provider`.

    Attributes:
        request: A request that the provider of `make_provider()` answers with text.
        tool_request: A request that it answers with calls of one or more of its `tools`, and whose
            conversation it continues with their results; with None, the tests of tool calls are
            skipped.
        unsupported_requests: Requests that it does not support, besides those that its
            `capabilities()` exclude.
    """

    __test__ = False
    _method = "stream_completion()"
    _items = "Chunk"

    request: llm.CompletionRequest = llm.CompletionRequest(
        messages=(llm.Message(role="user", content="Say hello."),)
    )
    tool_request: llm.CompletionRequest | None = None
    unsupported_requests: Sequence[llm.CompletionRequest] = ()

    @override
    def _open(self, provider: llm.Provider) -> Iterable[llm.Chunk]:
        return provider.stream_completion(self.request)

    @override
    def _check_items(self, items: Sequence[object]) -> None:
        check_response(join_chunks(items, self._method), self._method)

    def test_complete_answers(self) -> None:
        """`complete()` returns an answer, with a standard finish reason."""
        with self._working() as provider:
            answer = self._call("complete()", lambda: provider.complete(self.request))
            check_response(answer, "complete()")

    def test_complete_of_broken_provider_raises(self) -> None:
        """`complete()` raises if the provider cannot be reached."""
        with self._broken() as provider:
            call = self._start("complete()", lambda: provider.complete(self.request))
            call.check_failed(UNREACHABLE)

    def test_interrupted_complete_raises(self) -> None:
        """`complete()` raises if the answer breaks off, and does not return a part of it."""
        with self._interrupted() as provider:
            call = self._start("complete()", lambda: provider.complete(self.request))
            call.check_failed(CUT)

    def test_complete_in_several_threads(self) -> None:
        """Several threads can call `complete()` at the same time."""
        with self._working() as provider:
            answers = self._call_in_threads("complete()", lambda: provider.complete(self.request))
            for answer in answers:
                check_response(answer, "complete()")

    def test_complete_leaves_nothing(self) -> None:
        """A call of `complete()` leaves no thread and no connection."""
        with self._working() as provider:
            self._check_leftovers("complete()", lambda: provider.complete(self.request))

    def test_failed_complete_leaves_nothing(self) -> None:
        """A call of `complete()` that fails leaves no thread and no connection."""
        with self._broken() as provider:
            self._check_leftovers("complete() that failed", lambda: provider.complete(self.request))

    def test_tool_calls(self) -> None:
        """`complete()` returns complete tool calls, with arguments that are a JSON object."""
        request = self.tool_request or skip("tool_request")
        with self._working() as provider:
            answer = self._call("complete()", lambda: provider.complete(request))
            check_tool_calls(check_response(answer, "complete()"), request, "complete()")

    def test_streamed_tool_calls(self) -> None:
        """A stream yields complete tool calls, with arguments that are a JSON object."""
        request = self.tool_request or skip("tool_request")
        with self._working() as provider:
            chunks = self._call(self._method, lambda: self._read_answer(provider, request))
            check_tool_calls(join_chunks(chunks, self._method), request, self._method)

    def test_tool_results(self) -> None:
        """A conversation goes on with the results of the tool calls that `complete()` returned."""
        request = self.tool_request or skip("tool_request")
        operation = "an answer to the results of tool calls"
        with self._working() as provider:
            first = self._call("complete()", lambda: provider.complete(request))
            check_tool_calls(check_response(first, "complete()"), request, "complete()")
            results = [
                llm.Message(role="tool", tool_call_id=call.id, name=call.name, content="rain")
                for call in first.tool_calls
            ]
            then = replace(request, messages=(*request.messages, first.message, *results))
            answer = self._call(operation, lambda: provider.complete(then))
            check_response(answer, operation)
            chunks = self._call(operation, lambda: self._read_answer(provider, then))
            check_response(join_chunks(chunks, operation), operation)

    def test_unsupported_requests(self) -> None:
        """A request that the model does not support raises `UnsupportedRequestError`."""
        with self._working() as provider:
            capabilities = self._call("capabilities()", provider.capabilities)
            cases = [*excluded_requests(capabilities, self.request)]
            cases += [("one of `unsupported_requests`", r) for r in self.unsupported_requests]
            for what, request in cases or skip("unsupported_requests"):
                self._check_unsupported(provider, what, request)

    def test_extra_of_other_vendors_is_ignored(self) -> None:
        """Data of another vendor in `extra` is ignored."""
        messages = tuple(replace(message, extra=FOREIGN) for message in self.request.messages)
        request = replace(self.request, messages=messages, extra=FOREIGN)
        operation = "complete() with `extra` of another vendor"
        with self._working() as provider:
            answer = self._call(operation, lambda: provider.complete(request))
            check_response(answer, operation)

    def test_count_tokens(self) -> None:
        """`count_tokens()` returns a positive number, or raises that it is not supported."""
        with self._working() as provider:
            call = self._start(
                "count_tokens()", lambda: provider.count_tokens(self.request.messages)
            )
            if isinstance(call.error(), UNSUPPORTED):
                return
            tokens = check_value(call.result(), int, "count_tokens()")
            if isinstance(tokens, bool) or tokens < 1:
                fail(
                    f"count_tokens() returned {tokens!r} for `request`: return how many tokens it"
                    " has, or raise NotImplementedError"
                )

    def test_capabilities(self) -> None:
        """`capabilities()` describes the model, the same at each call."""
        with self._working() as provider:
            first = self._call("capabilities()", provider.capabilities)
            second = self._call("capabilities()", provider.capabilities)
        if check_value(first, llm.ModelCapabilities, "capabilities()") != second:
            fail("capabilities() differed between two calls: return the same at each call")
        if first.context_window < 1:
            fail(
                f"capabilities() has context_window={first.context_window}: set the number of"
                " tokens that request and answer may have together"
            )

    def _read_answer(
        self, provider: llm.Provider, request: llm.CompletionRequest
    ) -> list[llm.Chunk]:
        return read_all(provider.stream_completion(request), self._method)

    def _check_unsupported(
        self, provider: llm.Provider, what: str, request: llm.CompletionRequest
    ) -> None:
        self._start("complete()", lambda: provider.complete(request)).check_unsupported(what)
        stream = self._start(self._method, lambda: self._read_answer(provider, request))
        stream.check_unsupported(what)
