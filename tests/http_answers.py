"""What the predicates of `resilience.http` answer, for all that a provider may say."""

from resilience import http

Answers = tuple[bool, bool]
"""Results of `is_provider_fault` and `may_succeed_elsewhere`."""

WRONG_REQUEST = (False, False)
WRONG_PROVIDER = (False, True)
PROVIDER_FAULT = (True, True)
GRPC_CODES = {
    "INVALID_ARGUMENT": WRONG_REQUEST,
    "OUT_OF_RANGE": WRONG_REQUEST,
    "FAILED_PRECONDITION": WRONG_REQUEST,
    "ALREADY_EXISTS": WRONG_REQUEST,
    "NOT_FOUND": WRONG_PROVIDER,
    "PERMISSION_DENIED": WRONG_PROVIDER,
    "UNIMPLEMENTED": WRONG_PROVIDER,
    "UNAUTHENTICATED": PROVIDER_FAULT,
    "RESOURCE_EXHAUSTED": PROVIDER_FAULT,
    "UNAVAILABLE": PROVIDER_FAULT,
    "DEADLINE_EXCEEDED": PROVIDER_FAULT,
    "INTERNAL": PROVIDER_FAULT,
    "ABORTED": PROVIDER_FAULT,
    "CANCELLED": PROVIDER_FAULT,
    "DATA_LOSS": PROVIDER_FAULT,
    "UNKNOWN": PROVIDER_FAULT,
}


def answers(error: BaseException) -> Answers:
    """Call both predicates."""
    return http.is_provider_fault(error), http.may_succeed_elsewhere(error)
