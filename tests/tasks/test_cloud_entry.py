"""A cloud's entry in a file that a person wrote."""

from __future__ import annotations

import os
import stat

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lora_ops.errors import ConfigError
from lora_ops.spec import parse_spec
from tasks.cluster.entry import with_cloud, write_whole

TEXT = """\
# ours
app: team              # the app
image: {repository: ghcr.io/team/lora-scripts}
clouds:
    # the first
    aws: {kind: kubernetes, context: "aws-prod", size: 1}   # EKS

rollout:
    steps: [10, 50]    # careful
    waves: [[aws]]     # one by one
    gates:
    - {metric: error_rate, limit: 5%}
"""
GCP = {"kind": "kubernetes", "context": "gcp-prod"}


def test_a_new_cloud_changes_nothing_else():
    after = with_cloud(TEXT, "f", "gcp", {**GCP, "env_from": ["store"]})
    spec = parse_spec(after, "f")
    assert [line for line in TEXT.splitlines() if line not in after.splitlines()] == [
        "    waves: [[aws]]     # one by one"
    ]
    assert spec.clouds["gcp"].context == "gcp-prod"
    assert spec.clouds["gcp"].env_from == ("store",)
    assert spec.rollout.waves == (("aws",), ("gcp",))
    assert "[[aws], [gcp]] # one by one" in after


def test_only_what_is_given_changes():
    after = with_cloud(TEXT, "f", "aws", {"kind": "kubernetes", "size": 3, "resources": {"gpu": 2}})
    cloud = parse_spec(after, "f").clouds["aws"]
    assert (cloud.size, cloud.context, cloud.resources.gpu) == (3, "aws-prod", 2)
    again = with_cloud(after, "f", "aws", {"resources": {"cpu": "8"}})
    assert parse_spec(again, "f").clouds["aws"].resources.gpu == 2


def test_twice_is_once():
    once = with_cloud(TEXT, "f", "gcp", GCP)
    assert with_cloud(once, "f", "gcp", GCP) == once


@pytest.mark.parametrize("start", ["image: {repository: r.io/x}\nclouds:\n", "image: {repository: r.io/x}\n"])
def test_the_first_cloud_of_a_file(start):
    after = with_cloud(start, "f", "gcp", GCP)
    assert parse_spec(after, "f").clouds["gcp"].context == "gcp-prod"


@pytest.mark.parametrize(
    ("text", "values", "words"),
    [
        ("", GCP, "mapping"),
        ("- a\n", GCP, "mapping"),
        ("clouds: [\n", GCP, "f:"),
        ("clouds: words\n", GCP, "clouds: a mapping"),
        (TEXT, {"kind": "kubernetes"}, "context"),
        (TEXT, {**GCP, "size": 0}, "size"),
        (TEXT, {**GCP, "namespace": "No"}, "namespace"),
        (TEXT.replace("image:", "imago:"), GCP, "imago"),
        ("clouds: {here: {kind: local}}\n", GCP, "one kind"),
    ],
)
def test_what_would_make_no_spec_is_refused(text, values, words):
    with pytest.raises(ConfigError) as caught:
        with_cloud(text, "f", "gcp", values)
    assert words in " ".join([caught.value.message, *caught.value.details])


@settings(max_examples=50, deadline=None)
@given(st.from_regex(r"[a-z]([a-z0-9-]{0,6}[a-z0-9])?", fullmatch=True), st.integers(1, 9))
@example("on", 1)
@example("no", 1)
@example("null", 1)
@example("e1", 1)
def test_whatever_its_name_it_is_in_the_spec(name, size):
    """`on`, `no`, `null` and `1e3` are no text to YAML unless they are quoted."""
    after = with_cloud(TEXT, "f", name, {**GCP, "size": size})
    assert yaml.safe_load(after)["clouds"][name]["size"] == size


def test_a_file_is_replaced_whole_with_its_mode(tmp_path):
    real, link = tmp_path / "real.yaml", tmp_path / "lora-ops.yaml"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    write_whole(link, "new")
    assert real.read_text() == "new"
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ["lora-ops.yaml", "real.yaml"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "lora-ops.yaml"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["lora-ops.yaml"]
