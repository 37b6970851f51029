"""The console script starts light; the registry, the help and the functions agree."""

import importlib
import inspect
import json

import pytest

from cli.registry import COMMANDS, GROUPS, JSON, OWN, SECTIONS, WRITE, group_overview, overview
from lora_ops import __version__

HEAVY = ["prefect", "torch", "wandb", "httpx", "pydantic", "rich", "yaml", "typer"]
SHOW = f"import sys; sys.argv = ['lora-ops', *sys.argv[1:]]; from cli.main import main; main(); \
print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
LIGHT_SHOW = SHOW.replace(str(HEAVY), str(["prefect", "torch", "wandb", "httpx", "rich"]))
ALL = {**COMMANDS, **{f"{g} {n}": entry for g, (_, table) in GROUPS.items() for n, entry in table.items()}}
HERE = [name for name, entry in ALL.items() if not entry[0].startswith("cli.local.")]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["rollout"], ["runs", "--help"]])
def test_help_imports_nothing(process, arguments):
    out, err = process(*arguments, code=SHOW).communicate()
    assert out.strip()
    assert err.strip() == "[]"


@pytest.mark.parametrize("arguments", [["rollout", "watch", "--help"], ["deploy", "-h"], ["train", "--help"]])
def test_help_of_a_command_imports_only_typer(process, arguments):
    out, err = process(*arguments, code=SHOW).communicate()
    assert "-h, --help" in out
    assert err.strip() == "['typer']"


def test_help_on_a_topic_imports_nothing_heavy(process):
    out, err = process("help", "exit-codes", code=LIGHT_SHOW).communicate()
    assert out.strip()
    assert err.strip() == "[]"


def test_help_among_other_words_is_parsed(cli):
    status, _, err = cli("deply", "--help")
    assert (status, "Did you mean `deploy`?" in err) == (2, True)
    assert "Usage: lora-ops deploy" in cli("deploy", "--json", "--help")[1]


def test_every_command_is_in_one_section():
    listed = [name for names in SECTIONS.values() for name in names]
    assert sorted(listed) == sorted([*COMMANDS, *GROUPS])


@pytest.mark.parametrize("name", HERE)
def test_help_of_every_command(cli, name):
    status, out, err = cli(*name.split(), "--help")
    assert (status, err) == (0, "")
    assert "Usage: lora-ops " + name in out
    for option in ("json", "dry-run", "yes", "server"):
        assert (f"--{option}" in out) == (option in ALL[name][2])


@pytest.mark.parametrize("name", HERE)
def test_every_function_is_where_the_registry_says(name):
    target, text, shared = ALL[name]
    module, _, function = target.partition(":")
    found = getattr(importlib.import_module(module), function)
    assert ("session" in inspect.signature(found).parameters) == (shared != OWN)
    assert found.__doc__
    assert text.endswith(".")


def test_reading_commands_speak_json_and_writing_ones_can_be_dry():
    for name, (_, _, shared) in ALL.items():
        assert shared == OWN or shared >= JSON, name
    writing = {name for name, entry in ALL.items() if entry[2] == WRITE}
    assert {"deploy", "train", "rollout rollback", "runs cancel", "cloud drain"} <= writing


def test_overview_is_the_same_on_both_paths(cli):
    assert cli("--help")[1] == overview() + "\n"
    for name in GROUPS:
        assert cli(name)[1].strip() == cli(name, "--help")[1].strip() == group_overview(name)


def test_version(cli):
    assert cli("version")[1] == f"lora-ops {__version__}\n"
    assert json.loads(cli("version", "--json")[1])["version"] == __version__


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rolout"], "Did you mean `rollout`?"),
        (["rollout", "wach"], "Did you mean `watch`?"),
        (["help", "exit-code"], "Did you mean `exit-codes`?"),
        (["runs", "show"], "See `lora-ops runs show --help`."),
        (["status", "--jsn"], "--json"),
    ],
)
def test_wrong_usage_exits_2_and_says_what_to_do(cli, arguments, said):
    status, out, err = cli(*arguments)
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert said in err


def test_topics(cli):
    for name in ("environment", "exit-codes", "formatting"):
        assert len(cli("help", name)[1]) > 100


def test_a_defect_is_one_line_without_debug_and_a_traceback_with_it(cli, monkeypatch):
    monkeypatch.setattr("platform.python_version", lambda: 1 / 0)
    status, _, err = cli("version", "--json")
    assert status == 1
    assert err.startswith("error: ZeroDivisionError")
    assert "Traceback" not in err
    assert "Traceback" in cli("--debug", "version", "--json")[2]
