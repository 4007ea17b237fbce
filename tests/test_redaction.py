"""Secrets neither leave with a configuration nor with a message."""

import pytest

from pipeline import config as configuration
from pipeline.config import UnlearnConfig
from pipeline.errors import InputError
from pipeline.redaction import redact, redacted
from pipeline.runtime.command_line import main

PLANTED = "planted-wJalrXUtnFEMI"


@pytest.mark.parametrize(
    ("text", "kept", "gone"),
    [
        ("http://op:s3cret-p@ss@mlflow:5000/x", "http://op:***@mlflow:5000/x", "p@ss"),
        ("postgresql+psycopg://u:pw%40d@db/mlflow", "postgresql+psycopg://u:***@db/mlflow", "pw%40d"),
        ("redis://:hunter2hunter2@redis:6379", "redis://:***@redis:6379", "hunter2"),
        ("https://b/x?X-Amz-Signature=abc123&part=1", "https://b/x?X-Amz-Signature=***&part=1", "abc123"),
        ("http://op:pa/ss@mlflow:5000/x", "http://op:***@mlflow:5000/x", "pa/ss"),
        ("http://op:my pass word@mlflow/x", "http://op:***@mlflow/x", "pass word"),
        ("https://ghp_0123456789abcdefABCD@host/x", "https://***@host/x", "ghp_"),
        ("https://ghp_0123456789abcdefABCD:x-oauth-basic@host/x", "https://***:***@host/x", "ghp_"),
        ("https://b/x?api_key=abc123&access_token=def456", "?api_key=***&access_token=***", "456"),
        ("postgresql://u:p@ss/w0rd@db:5432/mlflow", "postgresql://u:***@db:5432/mlflow", "w0rd"),
        ("http://op:pa/s s/w@rd@mlflow:5000/x", "http://op:***@mlflow:5000/x", "rd@"),
        ("http://op:p w?a#b@[::1]:80/x", "http://op:***@[::1]:80/x", "a#b"),
        ("https://hf_abcdefghijklmnopqrst@huggingface.co/x", "https://***@huggingface.co/x", "hf_"),
        ("https://oauth2:glpat-abc@gitlab.com/x", "https://oauth2:***@gitlab.com/x", "glpat"),
        ("s3://AKIAIOSFODNN7EXAMPLE:wJalr/XUtn@bucket/x", "s3://***:***@bucket/x", "XUtn"),
        ("https://h/x?api-key=a/b&accessToken=q1w2", "?api-key=***&accessToken=***", "q1w2"),
        ("PASSWORD='two words' x", "PASSWORD=*** x", "two words"),
        ("AccountKey=abcd==;Endpoint=x", "AccountKey=***;Endpoint=x", "abcd"),
        ('{"api_key": "hunter22", "n": 3}', '{"api_key": ***, "n": 3}', "hunter22"),
        ("db_password: hunter22", "db_password: ***", "hunter22"),
        ("Authorization: Bearer eyJhbGciOi.abc.def", "Bearer ***", "eyJ"),
        ("--set client_secret=abc123", "--set client_secret=***", "abc123"),
        ("AWS_SESSION_TOKEN=abc123 python x", "AWS_SESSION_TOKEN=*** python x", "abc123"),
        ("https://user:pa'ss@h/x", "https://user:***@h/x", "pa'ss"),
        ("Authorization: Basic dXNlcjpwYXNzd29yZA==", "Authorization: Basic ***", "dXNl"),
        ("passphrase=abc123", "passphrase=***", "abc123"),
        ("aws_secret_access_key = abc123", "aws_secret_access_key = ***", "abc123"),
        ("hf_token: abc123", "hf_token: ***", "abc123"),
        ("private_key: abc123", "private_key: ***", "abc123"),
        ("token: S3cr3tV4lue99", "token: ***", "S3cr3t"),
        ("pass=S3cr3tV4lue99", "pass=***", "S3cr3t"),
        ("Cookie: session=S3cr3tV4lue99; b=2", "Cookie: ***", "S3cr3t"),
        ("Authorization: S3cr3tV4lue99", "Authorization: ***", "S3cr3t"),
        ("curl -u user:S3cr3tV4lue99 https://h", "curl -u user:*** https://h", "S3cr3t"),
        ("curl --user 'user:S3cr3tV4lue99' x", "--user 'user:***' x", "S3cr3t"),
        ("x --api-key S3cr3tV4lue99 y", "--api-key *** y", "S3cr3t"),
        ("password:\n  S3cr3tV4lue99", "password:\n  ***", "S3cr3t"),
        ("user:S3cr3tV4lue99@host:5000/x", "user:***@host:5000/x", "S3cr3t"),
        ("mysql://root:S3cr3tV4lue99@/db", "mysql://root:***@/db", "S3cr3t"),
        ("https%3A%2F%2Fuser%3AS3cr3tV4lue99%40h", "https%3A%2F%2Fuser%3A***%40h", "S3cr3t"),
        ("xoxb-1234567890-abcdefXYZ here", "*** here", "xoxb"),
        ("https://hooks.slack.com/services/T00/B00/XyZ", "hooks.slack.com/services/***", "XyZ"),
        ("with hf_abcdefghijklmnopqrst", "with ***", "hf_abc"),
        ("with AKIAIOSFODNN7EXAMPLE", "with ***", "AKIA"),
        ("with eyJhbGciOiJI.eyJzdWIiOiIx.SflKxw", "with ***", "Sfl"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\nab\n-----END RSA PRIVATE KEY-----", "KEY-----***", "MIIE"),
    ],
)
def test_passwords_in_uris(text: str, kept: str, gone: str) -> None:
    assert kept in redact(f"could not reach {text}, trying again") and gone not in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a:b/c@d",
        "http://host:5000/path@x",
        "https://op@host/x",
        "tokens=3",
        "token: 3, monkey=3",
        "secret: null",
        "the passwords: and the password",
        "key=3",
        "ratio 3:4 @ noon",
        "auth_token: ~/.ray/auth_token",
        "label_token: 3, basic configuration, authorization: none",
        'auth_token: {file: "${SECRETS}/auth_token"}',
        "name: REDIS_PASSWORD\n  password:\n    valueFrom: {secretKeyRef: redis}",
        "sqlite:////data/mlflow.db",
        "ghcr.io/org/image:release@sha256:0123456789abcdef",
        "pass: 0.98765432, token: runs/digits/4, pwd: /home/user1/runs",
        "the run --user of --token",
        "",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text) == text


def test_secrets_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        *("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN", "GITHUB_PAT", "DB_PWD"),
        *("SMTP_PASS", "OPENAI_KEY", "MY_KEY_2", "APP_SECRETS", "GITLABTOKEN", "DB_PAT_2", "apikey"),
    ):
        monkeypatch.setenv(name, PLANTED)
        assert redacted({"a": [f"x {PLANTED} y"], PLANTED[:4]: 3}) == {"a": ["x *** y"], PLANTED[:4]: 3}
        monkeypatch.delenv(name)
    # where a secret lies, and what is none
    for name in ("RAY_AUTH_TOKEN_PATH", "TOKENIZERS_PARALLELISM", "AWS_ACCESS_KEY_ID", "PWD", "PATH"):
        monkeypatch.setenv(name, PLANTED)
        assert redact(PLANTED) == PLANTED
        monkeypatch.delenv(name)


def test_other_forms_of_a_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLACK_WEBHOOK_URL", "GITHUB_AUTH", "TOKENS", "DB_PASSWORDS", "JWT", "CONNECTION_STRING"):
        monkeypatch.setenv(name, "planted /wJalr&x")
        assert redact("a planted%20%2FwJalr%26x b cGxhbnRlZCAvd0phbHImeA== c") == "a *** b *** c"
        monkeypatch.delenv(name)


def test_nothing_below_a_key_that_names_a_secret() -> None:
    values = {"auth_token": {"value": "plain", "n": 3}, "password": "plain", "key": "key.pem", "token": 3}
    safe = {"auth_token": {"value": "***", "n": 3}, "password": "***", "key": "key.pem", "token": 3}
    assert redacted(values) == safe


@pytest.mark.parametrize("word", ["a", "a-", "a.", "a://:", "a_token", "user:", "x=1&", "a%3A%2F%2F"])
def test_a_long_word_costs_what_its_length_says(word: str) -> None:
    """What grows with its square would take an hour here."""
    assert redact(word * (200_000 // len(word)) + " password=1").endswith("password=***")


def test_a_dumped_configuration_reads_back_without_the_password() -> None:
    config = configuration.parse(UnlearnConfig, {"tracking": {"uri": f"http://op:{PLANTED}@mlflow:5000"}})
    text = configuration.dump(config)
    assert PLANTED not in text and "http://op:***@mlflow:5000" in text
    assert (
        configuration.dump(configuration.parse(UnlearnConfig, configuration.reading.yaml.safe_load(text)))
        == text
    )


@pytest.mark.parametrize(("kind", "code"), [(InputError, 2), (RuntimeError, 1)])
def test_messages_of_a_job(kind: type[Exception], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: UnlearnConfig, dry_run: bool) -> None:
        raise kind(f"no answer from http://op:{PLANTED}@mlflow:5000")

    assert main(UnlearnConfig, run, "", ["--config", "jobs/configs/quickstart.yaml"]) == code
    said = capsys.readouterr().err
    assert PLANTED not in said and "http://op:***@mlflow:5000" in said
