"""Calls on an object store, tried again while it is busy or away; its refusals in words."""

import logging
import math
import os
import random
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import InputError
from pipeline.uris import is_local

PATIENCE_S = 120.0  # how long one call goes on trying
PATIENCE_VARIABLE = "UNLEARN_STORAGE_PATIENCE_S"  # in the environment: replaces it
LONGEST_PAUSE_S = 10.0

log = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")


class StorageError(OSError):
    """An object could not be read or written after all tries; the message names it."""


def retrying(uri: str, action: str, call: Callable[[], ResultT]) -> ResultT:
    """`call()`, again while an object store is busy or away. On a local disk an error is final at once.

    Raises `FileNotFoundError` as it comes, `InputError` for refused or missing credentials, `StorageError`
    when patience ends.
    """
    start, attempt = time.monotonic(), 0
    patience = patience_s()
    while True:
        try:
            return call()
        except Exception as error:
            if is_local(uri):
                raise
            refused = _refusal(error)
            if refused:
                raise InputError(f"storage {uri}: {refused}") from error
            if not _is_passing(error):
                raise
            attempt += 1
            pause = min(LONGEST_PAUSE_S, 0.25 * 2**attempt) * random.uniform(0.5, 1.0)
            waited = time.monotonic() - start
            if waited + pause > patience:
                reason = f"{type(error).__name__}: {error}"
                raise StorageError(
                    f"could not {action} {uri}: gave up after {attempt} tries in {waited:.0f} s ({reason})"
                ) from error
            if attempt > 1:
                log.warning(
                    "storage: could not %s %s (%s), trying again in %.1f s",
                    action,
                    uri,
                    type(error).__name__,
                    pause,
                )
            time.sleep(pause)


def patience_s() -> float:
    """Seconds for which a call goes on trying."""
    text = os.environ.get(PATIENCE_VARIABLE, "")
    try:
        seconds = float(text or PATIENCE_S)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InputError(f"{PATIENCE_VARIABLE}: got {text!r}, expected seconds such as 120")
    return seconds


def _is_passing(error: BaseException) -> bool:
    """Whether waiting may help: busy servers (5xx), time-outs, resets, truncated bodies."""
    if isinstance(
        error,
        FileNotFoundError
        | PermissionError
        | FileExistsError
        | IsADirectoryError
        | NotADirectoryError
        | StorageError,
    ):
        return False
    if isinstance(error, OSError | TimeoutError | EOFError):  # s3fs reports server errors as OSError
        return True
    kinds = {
        "botocore.exceptions": ("HTTPClientError", "ConnectionError", "IncompleteReadError"),
        "botocore.parsers": ("ResponseParserError",),  # a listing cut short
        "aiohttp": ("ClientError",),
        "http.client": ("HTTPException",),
    }
    passing = tuple(
        getattr(sys.modules[module], name)
        for module, names in kinds.items()
        if module in sys.modules
        for name in names
    )
    return isinstance(error, passing)


def _refusal(error: BaseException) -> str | None:
    """What to mend when the store does not know or trust us, None when the error is another."""
    name, text = type(error).__name__, f"{error} {error.__cause__ or ''}"
    if name in ("ProfileNotFound", "ConfigParseError", "InvalidRegionError"):
        return f"{error}; check AWS_PROFILE, AWS_DEFAULT_REGION and the files under ~/.aws"
    if name in ("NoCredentialsError", "PartialCredentialsError"):
        return "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if "InvalidAccessKeyId" in text or "Access Key Id" in text:
        return "the access key is unknown there; check AWS_ACCESS_KEY_ID (and AWS_ENDPOINT_URL)"
    if "SignatureDoesNotMatch" in text or "signature we calculated" in text:
        return "the signature was refused; check AWS_SECRET_ACCESS_KEY"
    if "ExpiredToken" in text or "InvalidToken" in text:
        return "the session token is refused or expired; renew AWS_SESSION_TOKEN"
    if isinstance(error, PermissionError):
        return "access denied; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
    return None
