"""A store's URL and its options, and where a backup may lie."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ops.spec_types import Section
from lora_ops.storage_spec import OPTIONS, Address, BackupSpec, check_apart, read_address


def test_all_options() -> None:
    text = (
        "s3://bucket/folder?credentials_block=aws-credentials/team&encryption=sse-kms"
        "&kms_key=arn:aws:kms:eu-central-1:1:key/x&endpoint=http://minio:9000&region=eu-central-1"
    )
    assert read_address(text) == Address(
        "s3://bucket/folder",
        "aws-credentials/team",
        "sse-kms",
        "arn:aws:kms:eu-central-1:1:key/x",
        "http://minio:9000",
        "eu-central-1",
    )


@pytest.mark.parametrize(
    "text", ["s3://bucket", "s3://bucket/a?", "gs://bucket/a", "file:///a?b=c", "./what?", "memory://x", ""]
)
def test_a_url_without_options(text: str) -> None:
    address = read_address(text)
    assert address == Address(text.removesuffix("?") if text.startswith("s3://") else text)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("encrypt=sse-s3", "Did you mean `encryption`"),
        ("encryption", "needs a value"),
        ("encryption=", "needs a value"),
        ("endpoint=http%3A%2F%2Fx", "without %-codes"),
        ("encryption=aes", "one of sse-s3, sse-kms, not aes"),
        ("encryption=sse-s3&encryption=sse-s3", "twice"),
        ("encryption=sse-s3&kms_key=x", "goes with"),
        ("endpoint=minio:9000", "begins with http"),
    ],
)
def test_options_that_cannot_be(query: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_address(f"s3://bucket/folder?{query}")


@given(st.text())
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    for url in (text, f"s3://bucket?{text}"):
        try:
            read = read_address(url).url
        except ValueError as error:
            read = url if str(error) else "refused without a word"
        assert url.startswith(read)


@given(
    st.dictionaries(
        st.sampled_from(["credentials_block", "region"]), st.from_regex(r"[a-z/-]+", fullmatch=True)
    )
)
def test_options_come_back(options: dict[str, str]) -> None:
    assert set(options) <= set(OPTIONS)
    query = "&".join(f"{name}={value}" for name, value in options.items())
    assert read_address(f"s3://b?{query}") == Address("s3://b", **options)


@pytest.mark.parametrize(
    ("store", "backup", "good"),
    [
        ("s3://a/b", "s3://a/c", True),
        ("s3://a/b", "s3://a/bc", True),
        ("s3://a/b", "s3://a/b/", False),
        ("s3://a/b", "s3://a/b?encryption=sse-s3", False),
        ("s3://a/b", "s3://a/b?endpoint=http://minio", True),
        ("s3://a/b/c", "s3://a/b", False),
        ("s3://a", "s3://a/backup", False),
        ("file://./store", "./store/copy", False),
        ("file:///x", "s3://x", True),
    ],
)
def test_a_backup_lies_elsewhere(store: str, backup: str, good: bool) -> None:
    if good:
        check_apart(store, backup)
        return
    with pytest.raises(ValueError, match="place of its own"):
        check_apart(store, backup)


def test_a_backup_mirrors_every_five_minutes() -> None:
    assert issubclass(BackupSpec, Section)
    assert BackupSpec(url="s3://b").every == 300
