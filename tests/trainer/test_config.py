from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import ConfigError, TrainConfig, config_from, load_config, parse_config

ROOT = Path(__file__).parents[2]
NINE = """\
train_data_dir: ./data/style_train
metadata_path: ./data/style_train/metadata.csv
base_model: ./models/Stable-diffusion/v1-5-pruned.safetensors
lora_rank: 8
batch_size: 4
epochs: 10
learning_rate: 2e-4
output_dir: ./output/my_style_lora
save_steps: 100
"""


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "f.yaml")
    return list(caught.value.problems)


def test_the_nine_keys_mean_what_they_say() -> None:
    config = parse_config(NINE, "x")
    assert config.learning_rate == 0.0002
    assert (config.lora_rank, config.alpha, config.batch_size, config.epochs, config.save_steps) == (
        8,
        8.0,
        4,
        10,
        100,
    )
    assert config.metadata_path == Path("data/style_train/metadata.csv")


@pytest.mark.parametrize("written", ["2e-4", "2E-4", "2.0e-4", "0.0002", '"2e-4"', "+2e-4"])
def test_every_spelling_of_a_number_is_the_number(written: str) -> None:
    assert parse_config(NINE.replace("2e-4", written), "x").learning_rate == 0.0002


def test_a_dict_from_pyyaml_with_the_number_as_a_string_works() -> None:
    values = yaml.safe_load(NINE)
    assert isinstance(values["learning_rate"], str)
    assert config_from(values).learning_rate == 0.0002


def test_yaml_words_that_pyyaml_takes_for_booleans() -> None:
    config = parse_config(NINE + "mixed_precision: no\ntracker: {wandb: off}\n", "x")
    assert config.mixed_precision == "no"
    assert config.tracker.wandb == "off"


def test_all_errors_at_once_with_line_key_range_and_usual_choice() -> None:
    found = problems(
        NINE.replace("lora_rank: 8", "lora_rnk: 8").replace("batch_size: 4", "batch_size: 0")
        + "tracker:\n  projct: a\nflip: maybe\n"
    )
    assert found[0] == "f.yaml:4: unknown key `lora_rnk`; did you mean `lora_rank`?"
    assert found[1].startswith("f.yaml:5: `batch_size` is 0:")
    assert "allowed: 1 or more" in found[1]
    assert "usual: 1 to 8" in found[1]
    assert found[2] == "f.yaml:11: unknown key `tracker.projct`; did you mean `project`?"
    assert found[3].startswith("f.yaml:12: `flip` is 'maybe'")
    assert len(found) == 4


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("lora_rank: true", "`lora_rank` is True"),
        ("lora_rank: 8.5", "`lora_rank` is 8.5"),
        ("learning_rate: fast", "`learning_rate` is 'fast'"),
        ("learning_rate: .nan", "`learning_rate` is nan"),
        ("learning_rate: 3", "at most 1"),
        ("resolution: 100", "multiple of 8"),
        ("target_modules: []", "`target_modules` is []"),
        ("output_dir: ''", "must not be empty"),
        ("lr_schedule: cos", "'constant', 'linear', 'cosine'"),
        (
            "background: red",
            "'red': not one of its values (what shows through where a picture is transparent: white",
        ),
        ("sample_prompts: a cat", "should be a list, such as [one, two]"),
        ("flip: maybe", "should be true or false; usual: false"),
    ],
)
def test_wrong_values(line: str, said: str) -> None:
    key = line.split(":")[0]
    kept = "".join(row + "\n" for row in NINE.splitlines() if not row.startswith(f"{key}:"))
    (found,) = problems(kept + line + "\n")
    assert said in found
    assert found.startswith(f"f.yaml:{len((kept + line).splitlines())}: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "f.yaml:1: not YAML"),
        ("- a\n", "f.yaml:1: expected `key: value`, found a list"),
        (NINE + "epochs: 3\n", "f.yaml:10: `epochs` is given twice (first on line 6)"),
        ("", "`train_data_dir` is missing"),
        ("!!python/object/apply:os.system ['true']", "found a list"),
        ("a: !!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_what_is_no_config(text: str, said: str) -> None:
    assert said in problems(text)[0]


def test_a_missing_config_file_and_one_that_is_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such config file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"output_dir: caf\xe9")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "latin.yaml")


values = st.fixed_dictionaries(
    {},
    optional={
        "lora_rank": st.integers(1, 1024),
        "lora_alpha": st.floats(0.001, 4096),
        "learning_rate": st.floats(1e-9, 1),
        "target_modules": st.one_of(
            st.just("auto"), st.lists(st.text("abc._0", min_size=1), min_size=1).map(tuple)
        ),
        "flip": st.booleans(),
        "mixed_precision": st.sampled_from(["auto", "no", "bf16"]),
        "resume": st.text(min_size=1).filter(lambda s: s.isprintable()),
        "caption_column": st.none() | st.text(min_size=1).filter(lambda s: s.isprintable()),
        "tracker": st.fixed_dictionaries({}, optional={"wandb": st.sampled_from(["auto", "off"])}),
    },
)


@given(values)
def test_to_yaml_reads_back_equal(changes: dict[str, Any]) -> None:
    config = config_from({"train_data_dir": "a b/ö", "base_model": "m", "output_dir": "o", **changes})
    assert parse_config(config.to_yaml(), "x") == config


def test_to_yaml_writes_no_defaults_because_older_releases_may_not_know_them() -> None:
    assert set(yaml.safe_load(parse_config(NINE, "x").to_yaml())) == set(yaml.safe_load(NINE))


def test_the_default_config_explains_every_key() -> None:
    text = (ROOT / "configs" / "default.yaml").read_text()
    load_config(ROOT / "configs" / "default.yaml")
    for name in TrainConfig.model_fields:
        (line, *_) = [row for row in text.splitlines() if row.removeprefix("# ").startswith(f"{name}:")] or [
            ""
        ]
        assert "#" in line.removeprefix("# "), name


def test_the_example_configs_are_valid() -> None:
    for path in sorted((ROOT / "examples" / "configs").glob("*.yaml")):
        load_config(path)


def test_config_and_data_import_neither_torch_nor_the_libraries() -> None:
    code = (
        "import sys, trainer, trainer.config, trainer.data\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'peft', 'wandb'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
