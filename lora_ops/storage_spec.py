"""Where a platform's objects lie: a store's URL with its options, and `backup:` of lora-ops.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field, field_validator, model_validator

from lora_ops import yaml_lines
from lora_ops.errors import nearest
from lora_ops.spec_types import Seconds, Section

REMOTE = ("s3", "gs", "az")
#: What may follow a URL: `s3://bucket/folder?encryption=sse-kms&kms_key=alias/team`.
OPTIONS = ("credentials_block", "encryption", "endpoint", "kms_key", "region")
ENCRYPTIONS = ("sse-s3", "sse-kms")


@dataclass(frozen=True, slots=True)
class Address:
    """A store's URL and its options. Nothing in it is a secret: `credentials_block` is a block's name."""

    url: str
    credentials_block: str | None = None
    encryption: str | None = None
    kms_key: str | None = None
    endpoint: str | None = None
    region: str | None = None


def read_address(text: str) -> Address:
    """The URL without its options, and these. ValueError, in words for a person, for one that cannot be.

    Only remote stores take options: a `?` in the name of a folder is a part of that name.
    """
    scheme = text.partition("://")[0]
    if scheme not in REMOTE or "?" not in text:
        return Address(text)
    url, _, query = text.partition("?")
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        if name not in OPTIONS:
            raise ValueError(f"`{name}` is not an option of a store. {nearest(name, OPTIONS)}")
        if not value or "%" in value:
            raise ValueError(f"`{name}` needs a value, written as it is, without %-codes")
        if name in options:
            raise ValueError(f"`{name}` stands in it twice")
        options[name] = value
    _check(scheme, options)
    return Address(url, **options)


def _check(scheme: str, options: dict[str, str]) -> None:
    if scheme != "s3" and options:
        raise ValueError(
            f"{scheme}:// takes no options: encryption is its bucket's, credentials are its SDK's usual ones"
        )
    encryption = options.get("encryption")
    if encryption is not None and encryption not in ENCRYPTIONS:
        raise ValueError(f"`encryption` is one of {', '.join(ENCRYPTIONS)}, not {encryption}")
    if "kms_key" in options and encryption != "sse-kms":
        raise ValueError("`kms_key` goes with `encryption=sse-kms`")
    endpoint = options.get("endpoint", "https://")
    if not endpoint.startswith(("http://", "https://")):
        raise ValueError("`endpoint` begins with http:// or https://")


def _store_url(text: str) -> str:
    read_address(text)
    return text


StoreUrl = Annotated[str, AfterValidator(_store_url)]


class BackupSpec(Section):
    """A second store, to which `lora-ops serve` and `lora-ops storage sync` copy the first."""

    url: StoreUrl
    credentials_block: str | None = None
    every: Annotated[Seconds, Field(ge=10)] = 300.0

    @field_validator("credentials_block")
    @classmethod
    def _some_name(cls, name: str | None) -> str | None:
        if name is not None and not name.strip("/"):
            raise ValueError("the name of a prefect-aws block, such as aws-credentials/backup")
        return name

    @model_validator(mode="after")
    def _fits(self) -> BackupSpec:
        if self.credentials_block is not None:
            address = read_address(self.url)
            if not self.url.startswith("s3://"):
                raise yaml_lines.Wrong("a credentials block is for s3:// stores", "credentials_block")
            if address.credentials_block is not None:
                raise yaml_lines.Wrong("`url` names a block, too; leave one out", "credentials_block")
        return self


def check_apart(store: str, backup: str) -> None:
    """ValueError when one of the stores lies inside of the other, or is it."""
    ours, theirs = (f"{_folder(text)}/" for text in (store, backup))
    if ours.startswith(theirs) or theirs.startswith(ours):
        raise ValueError("it lies in the store itself, or the store in it; a backup needs a place of its own")


def _folder(text: str) -> str:
    address = read_address(text)
    plain = address.url.removeprefix("file://").rstrip("/")
    return f"{address.endpoint or ''}{plain}"
