"""Secrets kept out of what is written down or said: passwords inside URIs, and the values of the
environment's own secrets."""

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
SHORTEST = 8  # a shorter value of a secret variable is no secret, and would blot out ordinary text
NAMES = re.compile(
    r"(?:^|_)(?:SECRET|(?:PG)?PASSWORD|PASSWD|TOKEN|CREDENTIALS?|PRIVATE_KEY|API_?KEY)(?:_|$)", re.IGNORECASE
)
# variables that say where a secret is
NOT_SECRET = re.compile(r"_(PATH|FILE|DIR|URI|URL|MODE)$", re.IGNORECASE)
IN_URI = re.compile(r"([a-zA-Z][\w+.-]*://[^\s/:@'\"]*):[^\s/'\"]+@")
IN_QUERY = re.compile(
    r"([?&](?:password|passwd|token|secret|sig|signature|x-amz-[\w-]+)=)[^&\s#'\"]+", re.IGNORECASE
)


def is_secret_name(name: str) -> bool:
    """Whether a variable called `name` holds a secret, by convention."""
    return bool(NAMES.search(name)) and not NOT_SECRET.search(name)


def environment_secrets() -> list[str]:
    """Values of this process's variables that are named like secrets, the longest first."""
    secrets = {value for name, value in os.environ.items() if is_secret_name(name) and len(value) >= SHORTEST}
    return sorted(secrets, key=len, reverse=True)


def redact(text: str) -> str:
    """`text` with every password of a URI, signed query parameter and secret of the environment replaced by
    ***."""
    text = IN_QUERY.sub(rf"\1{HIDDEN}", IN_URI.sub(rf"\1:{HIDDEN}@", text))
    for secret in environment_secrets():
        text = text.replace(secret, HIDDEN)
    return text


def redacted(value: Any) -> Any:
    """A copy of plain data (mappings, lists, scalars) with `redact` applied to every
    string that is no key."""
    if isinstance(value, Mapping):
        return {key: redacted(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(child) for child in value]
    return redact(value) if isinstance(value, str) else value
