"""Secrets kept out of what is written down or said: passwords inside URIs, and the values of the
environment's own secrets."""

import base64
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

HIDDEN = "***"
SHORTEST = 8  # a shorter value of a secret variable is no secret, and would blot out ordinary text
NAMES = re.compile(
    r"(?:^|_)(?:\w*(?:SECRETS?|PASSWORDS?|TOKENS?)|PASSPHRASE|PASSWD|PASS|PWD|PAT|CREDENTIALS?|(?:API|PRIVATE)?KEYS?"
    r"|JWT|DSN|COOKIES?|CONNECTION_STRING|WEBHOOK_URL|AUTH$)(?:_|$)",
    re.IGNORECASE,
)
# variables that say where a secret is
NOT_SECRET = re.compile(r"^PWD$|^SSH_AUTH|_(PATH|FILE|DIR|URI|(?<!WEBHOOK_)URL|MODE|ID)$", re.IGNORECASE)

# Every repetition that something has to follow is bounded: a long word costs what its length says, no more.
SCHEME = r"[a-zA-Z][\w+.-]{0,40}://"
WORD = r"[\w-]{0,64}"
VALUE = r"(?:'[^'\n]*'|\"[^\"\n]*\"|[^&\s#'\";]+)"
FIELD = r"['\"]?[ \t]*[:=][ \t]*"
# user:password@ of a URI; the password may hold @, slashes and blanks, but host:port/path@x is no user
IN_URI = re.compile(
    rf"({SCHEME}[^\s/:@'\"]{{0,256}}):(?!\d{{1,5}}(?:[\s/?#]|$))"
    r"(?:[^\s\"]{1,4096}|[^@'\"\n]{1,256}(?:@[^\s@'\"]{1,256}){0,8})@(?=[\w.\[/-])"
)
# a long user name without a password is a token
TOKEN_USER = re.compile(rf"({SCHEME})[\w~.%+-]{{16,4096}}((?::\*\*\*)?@)")
# (what stays, what goes): the first group of each stays
PATTERNS = tuple(
    re.compile(pattern, flags)
    for pattern, flags in (
        (
            r"(-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----).*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|$)",
            re.DOTALL,
        ),
        # of headers
        (
            rf"(\bauthorization{FIELD}['\"]?(?:(?:basic|bearer|token|digest|apikey|aws4[\w-]*)[ \t]+)?)"
            r"(?!(?:none|null|basic|bearer|token|digest)\b)[^\s'\",;]+",
            re.IGNORECASE,
        ),
        (rf"(\b(?:set-)?cookie{FIELD}['\"]?)[^'\"\n]+", re.IGNORECASE),
        (r"(\bbearer\s{1,8})[\w.~+/=-]{8,}", re.IGNORECASE),
        # of queries and assignments
        (
            rf"(\b(?:{WORD}(?:password|passphrase|passwd|pwd|token|secret|api[_-]?key|(?:access|account)[_-]?key)"
            rf"|(?:{WORD}[_-])?sig(?:nature)?|x-amz-{WORD})=){VALUE}",
            re.IGNORECASE,
        ),
        # as YAML, JSON and headers have them, on one line or the next; a bare `token: 3` is no secret
        (
            rf"(\b{WORD}(?:password|passphrase|passwd|secret|api[_-]?key|(?:access|auth|private)[_-]?(?:key|token)"
            rf"|[a-z][_-]token(?=['\"]?[ \t]*[:=][ \t]*['\"]?[^\s\d])){FIELD}(?:\n[ \t]+(?![\w-]+:))?)"
            rf"(?!['\"]?(?:null|none)\b|[{{\[]|~/|\$\{{){VALUE}",
            re.IGNORECASE,
        ),
        # names that also mean other things, where the value looks like nothing but a secret
        (
            rf"(\b(?:token|auth|pass|pwd){FIELD}['\"]?)(?![~/.{{\[])(?=[^\s'\",;&]*\d)(?=[^\s'\",;&]*[a-z])"
            r"[^\s'\",;&/]{8,}(?!/)",
            re.IGNORECASE,
        ),
        # of command lines
        (rf"((?<!\S)--?{WORD}(?:token|api-?key|password|passwd|secret)[ \t]+)(?!-){VALUE}", re.IGNORECASE),
        (r"((?<!\S)(?:-u|--user|--proxy-user)[ =]['\"]?[^\s:'\"]{1,256}:)[^\s'\"]+", 0),
        # a URI inside a URI
        (r"(%3A%2F%2F[^\s%]{0,256}%3A)[^\s]{1,1024}?(?=%40)", re.IGNORECASE),
        # user:password@host:port without a scheme; image:tag@sha256:... is none
        (r"((?<![\w/:.-])[\w.-]{1,64}:)[^\s:@/]{6,256}(?=@(?!sha256:)[\w.-]{1,256}:\d)", 0),
        # what tells by itself whose token it is
        (
            r"(\b)(?:xox[a-z]-[\w-]{10,}|hf_[A-Za-z0-9]{16,}|gh[a-z]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{12,}"
            r"|(?:AKIA|ASIA)[0-9A-Z]{16}\b|sk-[\w-]{20,}|AIza[\w-]{30,}|dapi[0-9a-f]{32}\b|npm_[A-Za-z0-9]{30,}"
            r"|pypi-[\w-]{30,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)",
            0,
        ),
        (r"(hooks\.slack\.com/(?:services|workflows)/)[\w/-]+", 0),
    )
)
# keys of plain data whose values are secrets whatever they look like
SECRET_KEY = re.compile(
    r"(?:password|passphrase|passwd|secret|api[_-]?key|(?:access|auth|private|refresh|session)[_-]?(?:key|token))$",
    re.IGNORECASE,
)


def is_secret_name(name: str) -> bool:
    """Whether a variable called `name` holds a secret, by convention."""
    return bool(NAMES.search(name)) and not NOT_SECRET.search(name)


def environment_secrets() -> list[str]:
    """Values of this process's variables that are named like secrets, the longest first."""
    secrets = {value for name, value in os.environ.items() if is_secret_name(name) and len(value) >= SHORTEST}
    return sorted(secrets, key=len, reverse=True)


def redact(text: str) -> str:
    """`text` with every password or token of a URI, value of a secret's name, token of a known shape and
    secret of the environment (as it is, percent-encoded or in base64) replaced by ***."""
    text = TOKEN_USER.sub(rf"\1{HIDDEN}\2", IN_URI.sub(rf"\1:{HIDDEN}@", text))
    for pattern in PATTERNS:
        text = pattern.sub(rf"\1{HIDDEN}", text)
    for secret in environment_secrets():
        encoded = base64.b64encode(secret.encode("utf-8", "surrogateescape")).decode()
        for form in (secret, quote(secret, safe="", errors="surrogateescape"), encoded):
            text = text.replace(form, HIDDEN)
    return text


def redacted(value: Any, *, secret: bool = False) -> Any:
    """A copy of plain data (mappings, lists, scalars) with `redact` applied to every string that is no key;
    below a key that names a `secret`, no string is left."""
    if isinstance(value, Mapping):
        return {
            key: redacted(child, secret=secret or bool(SECRET_KEY.search(str(key))))
            for key, child in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted(child, secret=secret) for child in value]
    if not isinstance(value, str):
        return value
    return HIDDEN if secret and value else redact(value)
