"""`lora-ops deploy --image` and `--pipeline` against the stand-in."""

import json

import pytest

ID = "roll-1"
SHA = f"sha256:{'a' * 64}"
IMAGE = f"ghcr.io/team/lora-scripts@{SHA}"
ROUTE = "POST /api/rollouts"


def started(image=IMAGE):
    return {"id": ID, "phase": "validating", "source": {"kind": "image", "image": image}}


def planned(**more):
    return {"dry_run": True, "source": {"kind": "image", "image": IMAGE}, **more}


def test_what_was_shown_is_what_is_started(cli, serve):
    serve.on(ROUTE, planned(), started())
    status, out, err = cli("deploy", "--image", "lora-scripts:latest")
    assert status == 0
    assert f"lora-ops rollout watch {ID}" in out
    assert IMAGE in err
    shown, real = serve.bodies(ROUTE)
    assert (shown["image"], shown["dry_run"], shown["source"]) == ("lora-scripts:latest", True, None)
    assert (real["image"], real["dry_run"]) == (IMAGE, False)


def test_the_digest_is_shown_where_nobody_is_asked(cli, serve):
    serve.on(ROUTE, started())
    status, _, err = cli("deploy", "--image", "lora-scripts:latest", "--yes")
    assert status == 0
    assert f"image {IMAGE}" in err
    assert [body["image"] for body in serve.bodies(ROUTE)] == ["lora-scripts:latest"]


def test_a_pipeline_document_is_sent_as_it_stands(cli, serve, tmp_path):
    text = '{"application": "ü"}\n'
    (tmp_path / "p.json").write_text(text, encoding="utf-8")
    serve.on(ROUTE, planned(translation=["application: x"]), started())
    status, _, err = cli("deploy", "--pipeline", "p.json")
    assert status == 0
    assert "application: x" in err
    shown, real = serve.bodies(ROUTE)
    assert (shown["pipeline"], shown["pipeline_source"], shown["source"]) == (text, "p.json", None)
    assert "image" not in shown
    assert (real["pipeline"], real["image"]) == (text, IMAGE)


def test_its_dry_run_shows_each_key_and_starts_nothing(cli, serve, tmp_path):
    (tmp_path / "p.json").write_text("{}")
    line = "pipeline.stages[0].clusters[0].strategy: plan 10, 100"
    serve.on(ROUTE, planned(translation=[line]))
    status, out, _ = cli("deploy", "--pipeline", "p.json", "--dry-run")
    assert status == 0
    assert line in out
    assert IMAGE in out
    assert json.loads(cli("deploy", "--pipeline", "p.json", "--dry-run", "--json")[1])["translation"] == [
        line
    ]
    assert {body["dry_run"] for body in serve.bodies(ROUTE)} == {True}


def test_where_it_goes_wrong_is_shown_as_it_stands(cli, serve, tmp_path):
    (tmp_path / "p.json").write_text("{}")
    details = ["p.json:6: `x`: `>` is wanted.", "    latency >> 2s", "            ^"]
    serve.fail(ROUTE, 422, kind="config", message="p.json has an error.", hint="Mend it.", details=details)
    status, _, err = cli("deploy", "--pipeline", "p.json", "--yes")
    assert status == 3
    assert "\n".join(f"  {line}" for line in details) in err


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--pipeline", "pipe.json"], 2, "Did you mean `pipeline.json`?"),
        (["--pipeline", "."], 2, "cannot be read"),
        (["--pipeline", "latin.json"], 3, "not text in UTF-8"),
        (["--pipeline", "pipeline.json", "--plan", "10,100"], 2, "has the plans"),
        (["--pipeline", "pipeline.json", "--image", IMAGE], 2, "--image names what is there already"),
        (["--pipeline", "pipeline.json", "--release", SHA], 2, "it goes without --pipeline"),
        (["--image", IMAGE, "--source", "."], 2, "it goes without --source"),
        (["--image", IMAGE, "--dirty"], 2, "it goes without --dirty"),
        (["--release", SHA, "--revision", "v1"], 2, "--release names what is there already"),
    ],
)
def test_what_cannot_be_meant_never_reaches_the_server(cli, serve, tmp_path, arguments, status, told):
    (tmp_path / "pipeline.json").write_text("{}")
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    found, _, err = cli("deploy", *arguments)
    assert found == status
    assert told in err
    assert serve.calls == []
