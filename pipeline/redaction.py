"""Secrets kept out of what is written down or said: passwords inside URIs, and the values of the
environment's own secrets."""

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
SHORTEST = 8  # a shorter value of a secret variable is no secret, and would blot out ordinary text
NAMES = re.compile(
    r"(?:^|_)(?:\w*(?:SECRETS?|PASSWORD|TOKEN)|PASSPHRASE|PASSWD|PASS|PWD|PAT|CREDENTIALS?|(?:API)?KEY)(?:_|$)",
    re.IGNORECASE,
)
# variables that say where a secret is
NOT_SECRET = re.compile(r"^PWD$|_(PATH|FILE|DIR|URI|URL|MODE|ID)$", re.IGNORECASE)
# user:password@ of a URI; the password may hold @, slashes and blanks, but host:port/path@x is no user
IN_URI = re.compile(
    r"([a-zA-Z][\w+.-]*://[^\s/:@'\"]*):(?!\d{1,5}(?:[\s/?#]|$))"
    r"(?:[^\s\"]+|[^@'\"\n]+(?:@[^\s@'\"]+)*)@(?=[\w.\[-])"
)
# a long user name without a password is a token
TOKEN_USER = re.compile(r"([a-zA-Z][\w+.-]*://)[\w~.%+-]{16,}((?::\*\*\*)?@)")
VALUE = r"(?:'[^'\n]*'|\"[^\"\n]*\"|[^&\s#'\";]+)"
IN_QUERY = re.compile(
    r"(\b(?:[\w-]*(?:password|passphrase|passwd|pwd|token|secret|api[_-]?key|(?:access|account)[_-]?key)"
    rf"|(?:[\w-]*[_-])?sig(?:nature)?|x-amz-[\w-]+)=){VALUE}",
    re.IGNORECASE,
)
# as YAML, JSON and headers have them; a bare `token: 3` is no secret
IN_FIELD = re.compile(
    r"(\b[\w-]*(?:password|passphrase|passwd|secret|api[_-]?key|(?:access|auth|private)[_-]?(?:key|token)"
    r"|[a-z]+[_-]token(?=['\"]?[ \t]*[:=][ \t]*['\"]?[^\s\d]))['\"]?[ \t]*[:=][ \t]*)"
    rf"(?!['\"]?(?:null|none)\b|[{{\[]|~/|\$\{{){VALUE}|(\bbearer\s+)[\w.~+/=-]{{8,}}",
    re.IGNORECASE,
)
HEADER = re.compile(
    r"(\bauthorization['\"]?[ \t]*[:=][ \t]*['\"]?(?:basic|bearer|token|digest)[ \t]+)[^\s'\",;]+",
    re.IGNORECASE,
)
PEM = re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL)


def is_secret_name(name: str) -> bool:
    """Whether a variable called `name` holds a secret, by convention."""
    return bool(NAMES.search(name)) and not NOT_SECRET.search(name)


def environment_secrets() -> list[str]:
    """Values of this process's variables that are named like secrets, the longest first."""
    secrets = {value for name, value in os.environ.items() if is_secret_name(name) and len(value) >= SHORTEST}
    return sorted(secrets, key=len, reverse=True)


def redact(text: str) -> str:
    """`text` with every password or token of a URI, value of a secret's name and secret of the environment
    replaced by ***."""
    text = TOKEN_USER.sub(rf"\1{HIDDEN}\2", IN_URI.sub(rf"\1:{HIDDEN}@", text))
    for pattern in (PEM, HEADER, IN_QUERY):
        text = pattern.sub(rf"\1{HIDDEN}", text)
    text = IN_FIELD.sub(rf"\1\2{HIDDEN}", text)
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
