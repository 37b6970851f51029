"""`lora-ops deploy` and `lora-ops rollout …` against the stand-in."""

import json

import pytest

ID = "roll-06dk3v9z1q7a4bc"
SHA = "sha256:" + "a" * 64
CLOUDS = {
    "east": {
        "weight": 50,
        "stable": SHA,
        "canary": SHA,
        "promoted": False,
        "starts": {"stable": 4, "canary": 6},
        "samples": {"stable": 3, "canary": 5},
        "bad": {"stable": 0, "canary": 1},
    },
    "west": {"weight": 50, "stable": SHA, "canary": SHA, "promoted": False},
}
RESULT = {
    "gate": "error_rate", "metric": "error_rate", "cloud": "east", "limit": 0.05, "harmful": 0.5,
    "k_fail": 1, "n_fail": 4, "k_pass": 1, "n_pass": 3, "e_value": 3.1, "e_value_good": 0.9,
    "threshold": 200.0, "threshold_pass": 20.0, "verdict": "inconclusive", "more_bad": 2, "more_good": 9,
    "note": "", "summary": "east: error_rate: 1 of 4",
}  # fmt: skip


def rollout(phase="canarying", **changes):
    look = {
        "n": 3,
        "time": "2026-11-23T15:00:00Z",
        "verdict": "inconclusive",
        "summary": "so far",
        "results": [RESULT],
    }
    return {
        "id": ID, "release": SHA, "revision": "abc", "phase": phase, "wave": 0, "step": 0, "weight": 50,
        "reason": "", "started": "2026-11-23T15:00:00Z", "updated": "2026-11-23T15:00:05Z", "clouds": CLOUDS,
        "verdict": "inconclusive", "last_look": look, "verified": {}, "paused": False,
        "first_failure_to_rollback_s": None, "deciding_sample_to_rollback_s": None, **changes,
    }  # fmt: skip


def listed(*items):
    return {"schema_version": 1, "items": list(items)}


def test_ls_for_people_programs_and_pipes(cli, serve):
    serve.on("GET /api/rollouts", listed(rollout(), rollout("promoted", id="roll-0")))
    status, out, err = cli("rollout", "ls")
    assert (status, err) == (0, "")
    assert ID in out
    assert "canarying" in out
    document = json.loads(cli("rollout", "ls", "--json")[1])
    assert document["schema_version"] == 1
    assert [item["id"] for item in document["items"]] == [ID, "roll-0"]
    assert cli("rollout", "ls", "-q")[1] == f"{ID}\nroll-0\n"
    assert len(json.loads(cli("rollout", "ls", "--json", "--limit", "1")[1])["items"]) == 1


def test_ls_of_nothing_tells_the_next_command(cli, serve):
    serve.on("GET /api/rollouts", listed())
    assert "lora-ops deploy" in cli("rollout", "ls")[1]
    assert json.loads(cli("rollout", "ls", "--json")[1])["items"] == []
    assert cli("rollout", "ls", "-q")[1] == ""
    assert cli("rollout", "show")[0] == 5


def test_show_takes_the_active_one_else_the_newest(cli, serve):
    serve.on(
        "GET /api/rollouts", listed(rollout("queued", id="roll-9"), rollout(), rollout("failed", id="roll-0"))
    )
    serve.on(f"GET /api/rollouts/{ID}", rollout())
    status, out, _ = cli("rollout", "show")
    assert status == 0
    for said in (
        ID,
        "wave 1 step 1",
        "50 %",
        "east",
        "1 of 4",
        "2 more bad or 9 more good",
        "sha256:aaaaaaaaaaaa",
        "1 bad of 5, 6 started",
    ):
        assert said in out
    serve.on("GET /api/rollouts", listed(rollout("failed", id="roll-2"), rollout("promoted", id="roll-1")))
    serve.on("GET /api/rollouts/roll-2", rollout("failed", id="roll-2", reason="no git"))
    assert "no git" in cli("rollout", "show")[1]


def test_an_unknown_id_is_the_servers_answer(cli, serve):
    serve.fail(
        "GET /api/rollouts/roll-x",
        404,
        kind="not-found",
        message="no rollout roll-x",
        hint="Did you mean ...",
    )
    assert cli("rollout", "show", "roll-x")[0] == 5


def test_history(cli, serve):
    event = {
        "seq": 4,
        "time": "2026-11-23T15:00:00Z",
        "kind": "built",
        "actor": "flow",
        "reason": "r",
        "data": {},
    }
    serve.on(f"GET /api/rollouts/{ID}/history", listed(event))
    out = cli("rollout", "history", ID)[1]
    assert "built" in out
    assert "2026-11-23T15:00:00Z" in out


@pytest.mark.parametrize(
    ("phase", "code"), [("promoted", 0), ("rolled-back", 9), ("aborted", 1), ("failed", 1)]
)
def test_watch_prints_one_line_a_change_and_exits_by_the_end(cli, serve, phase, code):
    serve.on(
        f"GET /api/rollouts/{ID}",
        rollout("building"),
        rollout("building"),
        rollout(),
        rollout(),
        rollout(phase),
    )
    status, out, err = cli("rollout", "watch", ID)
    assert status == code
    assert err == ""
    lines = out.splitlines()
    assert [line.split()[1] for line in lines] == ["building", "canarying", phase]


def test_watch_json_is_one_document_and_quiet_is_the_id(cli, serve):
    serve.on(f"GET /api/rollouts/{ID}", rollout(), rollout("rolled-back", first_failure_to_rollback_s=12.5))
    status, out, err = cli("rollout", "watch", ID, "--json")
    assert status == 9
    assert json.loads(out)["first_failure_to_rollback_s"] == 12.5
    assert len(err.splitlines()) == 2
    assert cli("rollout", "watch", ID, "-q") == (9, f"{ID}\n", "")


def test_watch_waits_for_an_approval_or_says_so(cli, serve):
    serve.on(f"GET /api/rollouts/{ID}", rollout("awaiting-approval"), rollout("promoted"))
    assert cli("rollout", "watch", ID)[0] == 0
    serve.on(f"GET /api/rollouts/{ID}", rollout("awaiting-approval"))
    status, _, err = cli("rollout", "watch", ID, "--no-wait-approval")
    assert status == 8
    assert f"lora-ops rollout approve {ID} --wave 1" in err


def test_watch_outlives_a_server_that_is_restarted(cli, serve):
    serve.on(f"GET /api/rollouts/{ID}", rollout(), None, None, rollout("promoted"))
    status, _, err = cli("rollout", "watch", ID)
    assert status == 0
    assert err.count("trying again") == 1


def test_watch_gives_up_on_a_server_that_stays_away(cli, serve, monkeypatch):
    monkeypatch.setattr("cli.follow.GIVE_UP_S", -1.0)
    serve.on(f"GET /api/rollouts/{ID}", rollout(), None)
    assert cli("rollout", "watch", ID)[0] == 7


def test_ctrl_c_detaches(cli, serve, monkeypatch):
    def interrupted(seconds):
        raise KeyboardInterrupt

    serve.on(f"GET /api/rollouts/{ID}", rollout())
    monkeypatch.setattr("time.sleep", interrupted)
    status, out, err = cli("rollout", "watch", ID, "--json")
    assert status == 130
    assert json.loads(out)["id"] == ID
    assert f"lora-ops rollout watch {ID}" in err
    assert f"lora-ops rollout abort {ID}" in err
    assert serve.bodies(f"POST /api/rollouts/{ID}/abort") == []


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_steering_that_destroys_nothing(cli, serve, verb):
    serve.on(f"POST /api/rollouts/{ID}/{verb}", rollout())
    status, out, _ = cli("rollout", verb, ID, "--reason", "looks good")
    assert status == 0
    assert ID in out
    [body] = serve.bodies(f"POST /api/rollouts/{ID}/{verb}")
    assert body["reason"] == "looks good"
    assert body["actor"]
    assert body["dry_run"] is False


def test_an_approval_is_of_the_wave_that_was_shown(cli, serve):
    route = f"POST /api/rollouts/{ID}/approve"
    serve.on(route, rollout("awaiting-approval"))
    serve.on(f"GET /api/rollouts/{ID}", rollout("awaiting-approval", wave=1))
    assert cli("rollout", "approve", ID, "--reason", "looks good")[0] == 0
    assert cli("rollout", "approve", ID, "--wave", "1")[0] == 0
    sent = serve.bodies(route)
    assert [body["wave"] for body in sent] == [1, 0]
    assert (sent[0]["reason"], sent[0]["dry_run"]) == ("looks good", False)
    assert sent[0]["actor"]


@pytest.mark.parametrize("verb", ["reject", "promote", "abort", "rollback"])
def test_steering_that_destroys_needs_yes_off_a_terminal(cli, serve, verb):
    route = f"POST /api/rollouts/{ID}/{verb}"
    serve.on(route, rollout("rolled-back"))
    status, _, err = cli("rollout", verb, ID)
    assert status == 2
    assert "--yes" in err
    assert serve.bodies(route) == []
    assert cli("rollout", verb, ID, "--yes")[0] == 0
    assert cli("rollout", verb, ID, "--dry-run")[0] == 0
    assert [body["dry_run"] for body in serve.bodies(route)] == [False, True]


def test_steering_takes_the_active_rollout_only(cli, serve):
    serve.on("GET /api/rollouts", listed(rollout("promoted")))
    status, _, err = cli("rollout", "rollback", "--yes")
    assert status == 5
    assert "No rollout is active" in err
    serve.on("GET /api/rollouts", listed(rollout()))
    serve.on(f"POST /api/rollouts/{ID}/rollback", rollout("rolled-back"))
    assert cli("rollout", "rollback", "--yes")[0] == 0


def test_store_goes_round_the_server(cli, serve, monkeypatch):
    calls = []

    class Local:
        @staticmethod
        def rollback(store, name, *, reason, actor, dry_run):
            calls.append((store, name, reason, dry_run))
            return rollout("rolled-back")

        @staticmethod
        def show(store, name):
            return rollout()

    monkeypatch.setitem(__import__("sys").modules, "cli.local.rollouts", Local)
    arguments = ["rollout", "rollback", ID, "--store", "file:///s", "--reason", "serve is dead"]
    assert cli(*arguments)[0] == 2
    assert cli(*arguments, "--yes")[0] == 0
    assert calls == [("file:///s", ID, "serve is dead", False)]
    assert cli("rollout", "show", "--store", "file:///s")[0] == 0
    assert serve.calls == []


def test_deploy_sends_the_checkout(cli, serve, tmp_path):
    serve.on("POST /api/rollouts", rollout("validating"), status=201)
    status, out, _ = cli("deploy", "--canary", "--plan", "10,50,100", "--reason", "why", "--yes", "--queue")
    assert status == 0
    assert f"lora-ops rollout watch {ID}" in out
    [body] = serve.bodies("POST /api/rollouts")
    assert body.pop("actor")
    assert body == {
        "source": str(tmp_path), "revision": None, "dirty": False, "release": None,
        "canary": True, "queue": True, "plan": [10, 50, 100], "reason": "why", "dry_run": False,
    }  # fmt: skip


def test_deploy_shows_its_plan_first(cli, serve):
    serve.on("POST /api/rollouts", {"plan": {"east": [10, 100]}}, rollout("validating"))
    status, _, err = cli("deploy")
    assert status == 0
    assert "plan" in err
    assert [body["dry_run"] for body in serve.bodies("POST /api/rollouts")] == [True, False]


def test_deploy_asks_on_a_terminal(cli, serve, monkeypatch):
    serve.on("POST /api/rollouts", {"plan": {}})
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("cli.session.sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    status, _, err = cli("deploy")
    assert status == 2
    assert "Cancelled" in err
    assert [body["dry_run"] for body in serve.bodies("POST /api/rollouts")] == [True]


def test_deploy_dry_run_starts_nothing(cli, serve):
    serve.on("POST /api/rollouts", {"dry_run": True, "plan": {"east": [10]}})
    assert json.loads(cli("deploy", "--dry-run", "--json")[1])["plan"] == {"east": [10]}
    assert [body["dry_run"] for body in serve.bodies("POST /api/rollouts")] == [True]


@pytest.mark.parametrize(("phase", "code"), [("promoted", 0), ("rolled-back", 9), ("failed", 1)])
def test_deploy_wait(cli, serve, phase, code):
    serve.on("POST /api/rollouts", rollout("validating"))
    serve.on(f"GET /api/rollouts/{ID}", rollout("queued"), rollout("building"), rollout(), rollout(phase))
    status, out, err = cli("deploy", "--canary", "--wait", "--yes", "--json")
    assert status == code
    assert json.loads(out)["phase"] == phase
    assert ID in err


def test_a_queued_rollout_that_is_overtaken_ends_the_watch(cli, serve):
    gone = {"error": {"kind": "not-found", "message": "no such rollout", "hint": "", "details": []}}
    serve.answers[f"GET /api/rollouts/{ID}"] = [(200, rollout("queued")), (404, gone)]
    status, _, err = cli("rollout", "watch", ID)
    assert status == 6
    assert "left the queue" in err


def test_a_plan_may_stay_at_a_weight_as_the_spec_s_may(cli, serve):
    serve.on("POST /api/rollouts", rollout("validating"))
    assert cli("deploy", "--plan", "10,10%,50", "--yes")[0] == 0
    assert serve.bodies("POST /api/rollouts")[0]["plan"] == [10, 10, 50]
    status, _, err = cli("deploy", "--plan", "50,10", "--yes")
    assert status == 2
    assert "never go down" in err


def test_a_second_deploy_is_refused_with_the_first_ones_id(cli, serve):
    serve.fail("POST /api/rollouts", 409, kind="conflict", message=f"rollout {ID} is canarying")
    status, _, err = cli("deploy", "--yes")
    assert status == 6
    assert ID in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--plan", "50,10"],
        ["--plan", "ten"],
        ["--plan", "10,101"],
        ["--plan", ""],
        ["--source", "nowhere"],
        ["--release", SHA, "--dirty"],
        ["--release", SHA, "--revision", "v1"],
        ["--dirty", "--revision", "v1"],
    ],
)
def test_deploy_refuses_what_cannot_be_meant(cli, serve, arguments):
    assert cli("deploy", *arguments)[0] == 2
    assert serve.calls == []


def test_gate_explain_of_a_rollout(cli, serve):
    serve.on(
        "GET /api/gates/explain",
        {"rollout": ID, "results": [RESULT], "verdict": "inconclusive", "summary": "s"},
    )
    status, out, _ = cli("gate", "explain", ID)
    assert status == 0
    assert RESULT["summary"] in out
    assert serve.calls[0][1].endswith(f"rollout={ID}")


def test_gate_explain_shows_what_a_provider_was_asked(cli, serve):
    asked = {"gate": "oom", "cloud": "east", "provider": "prod", "query": "max(oom)", "answer": "no series"}
    body = {"rollout": ID, "results": [RESULT], "verdict": "inconclusive", "summary": "s", "asked": [asked]}
    serve.on("GET /api/gates/explain", body)
    out = cli("gate", "explain", ID)[1]
    assert "east: oom asked prod:\n  max(oom)\n  -> no series" in out


@pytest.mark.parametrize(
    ("failures", "samples", "verdict"),
    [(2, 2, "fail"), (3, 5, "fail"), (1, 5, "inconclusive"), (0, 13, "pass")],
)
def test_gate_explain_of_bare_numbers_needs_no_server(cli, failures, samples, verdict):
    numbers = [
        "--failures",
        str(failures),
        "--samples",
        str(samples),
        "--limit",
        "5%",
        "--confidence",
        "0.99",
    ]
    status, out, err = cli("gate", "explain", *numbers, "--harmful", "0.3", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["verdict"] == verdict
    assert verdict in cli("gate", "explain", *numbers)[1]


@pytest.mark.parametrize(
    "numbers",
    [
        ["--failures", "2"],
        ["--failures", "3", "--samples", "2"],
        ["--failures", "1", "--samples", "2", "--limit", "x"],
    ],
)
def test_gate_explain_refuses_numbers_that_cannot_be(cli, numbers):
    assert cli("gate", "explain", *numbers)[0] == 2
