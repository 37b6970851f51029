"""`lora-ops data check` with the trainer's own checker, and no server."""

import json

import pytest

from tests.trainer.picture_sets import picture, sd_header

GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A config over a JSONL file; the base model's first bytes say that it is a language model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(60))
    (tmp_path / "data").mkdir()
    config = "train_data_dir: ./data\nbase_model: ./model.gguf\noutput_dir: ./out\nlearning_rate: 2e-4\n"
    (tmp_path / "config.yaml").write_text(config)

    def write(*rows):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / "data" / "facts.jsonl").write_text("\n".join(lines) + "\n")

    return write


def test_a_good_dataset(cli, dataset):
    dataset(GOOD, GOOD)
    status, out, err = cli("data", "check", "config.yaml")
    assert (status, err) == (0, "")
    assert "2 items" in out
    document = json.loads(cli("data", "check", "config.yaml", "--json")[1])
    assert (document["schema_version"], document["items"], document["problems"]) == (1, 2, [])


def test_everything_wrong_is_listed_at_once(cli, dataset):
    dataset(GOOD, "{torn", GOOD, {"messages": []})
    status, out, err = cli("data", "check", "config.yaml", "--json")
    assert status == 3
    details = json.loads(out)["error"]["details"]
    assert len(details) == 2
    assert "facts.jsonl:2" in details[0]
    assert "facts.jsonl:4" in details[1]
    assert details[0] in err


@pytest.mark.parametrize("name", ["missing.yaml", "config.yaml"])
def test_a_config_that_is_wrong(cli, dataset, tmp_path, name):
    (tmp_path / "config.yaml").write_text("train_data_dirr: ./data\n")
    status, _, err = cli("data", "check", name)
    assert status == 3
    assert err.startswith("error: ")
    assert name in err


def test_a_model_that_is_missing(cli, dataset, tmp_path):
    dataset(GOOD)
    (tmp_path / "model.gguf").unlink()
    status, _, err = cli("data", "check", "config.yaml")
    assert status == 3
    assert "model.gguf" in err


def test_pictures_are_told_with_their_buckets_and_captions(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORA_OPS_CACHE", str(tmp_path / "cache"))
    sd_header(tmp_path / "model")
    for number, size in enumerate([(600, 400), (400, 400), (900, 600)]):
        picture(tmp_path / "data" / "5_cat" / f"{number}.png", f"cat {number}", size=size)
    text = "train_data_dir: data\nbase_model: model\noutput_dir: out\nresolution: 64\n"
    (tmp_path / "config.yaml").write_text(text)
    status, out, err = cli("data", "check", "config.yaml")
    assert (status, err) == (0, "")
    assert "ok: config.yaml: 3 items" in out
    assert "5_cat: 3 pictures, each 5 times an epoch" in out
    assert "captions: 3 of 3 pictures" in out
    assert "buckets: 1 of 64x64, 2 of 80x48" in out
    assert json.loads(cli("data", "check", "config.yaml", "--json")[1])["buckets"] == {"64x64": 1, "80x48": 2}
