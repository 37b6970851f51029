"""Prefect on PostgreSQL: alone, and scaled out with Redis, two API servers and two `lora-ops serve`.

Either of each pair is killed in mid-canary while requests come in, and nobody notices.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import psutil
import pytest

from lora_ops.errors import UnreachableError
from lora_ops.gates.samples import Outcome
from lora_ops.request import AttemptState
from lora_ops.state import Phase, Track
from tasks.bundle import tree_digest
from tasks.prefect_api import PrefectApi
from tests.flows.site import Site, eventually, free_port
from tests.ha import scaled
from tests.ha.balancer import Balancer
from tests.ha.databases import Postgres, Redis
from tests.ha.scaled import Replica, ScaledSite, until_ready

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.stop()


@dataclass
class Platform:
    """What runs: two of each, and the balancers before them. The first serve is the one that `up` started."""

    site: ScaledSite
    servers: list[Replica]
    prefect: Balancer
    serve_ports: list[int]
    another: Replica
    front: Balancer

    def kill(self, which: int) -> None:
        """SIGKILL to one API server of Prefect and to one `lora-ops serve`."""
        self.servers[which].kill()
        if which == 1:
            self.another.kill()
            return
        serve = self.site.daemon("serve")
        serve.kill()
        psutil.wait_procs([serve], timeout=10)

    def start_again(self, which: int) -> None:
        self.servers[which].start()
        if which == 1:
            self.another.start()
        else:
            self.site.up()

    def all_answer(self) -> None:
        for replica, port in zip(self.servers, self.prefect.backends, strict=True):
            until_ready(replica, f"http://127.0.0.1:{port}/api/ready")
        for port in self.serve_ports:
            eventually(lambda at=port: scaled.answers(f"http://127.0.0.1:{at}/healthz"), "serve answers", 60)  # type: ignore[misc]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[Platform]:
    """All of it up; nothing of it is left afterwards, whatever the tests did."""
    folder = tmp_path_factory.mktemp("scaled")
    with ExitStack() as undo:
        redis = Redis()
        undo.callback(redis.stop)
        database = postgres.database("prefect")
        scaled.migrate(folder, database)
        extra = scaled.chart_env(redis)
        ports = [free_port(), free_port()]
        servers = []
        for n, port in enumerate(ports):
            env = scaled.prefect_env(folder, f"api-{n}", database, extra)
            servers.append(scaled.api_server(folder, f"api-{n}", port, env, "--no-services"))
            undo.callback(servers[n].stop)
        env = scaled.prefect_env(folder, "services", database, extra)
        services = Replica("services", ["-m", "prefect", "server", "services", "start"], env, folder)
        undo.callback(services.stop)
        for replica, port in zip(servers, ports, strict=True):
            until_ready(replica, f"http://127.0.0.1:{port}/api/ready")

        front = free_port()
        site = ScaledSite(folder / "site", front)
        at = int(site.spec.prefect.api_url.rpartition(":")[2].removesuffix("/api"))
        prefect = Balancer(at, ports)
        undo.callback(prefect.stop)
        undo.callback(site.stop)
        site.up()
        assert "prefect-server" not in site.cli("down", "--dry-run").stdout
        serve_ports = [site.spec.serve.port, free_port()]
        another = site.another_serve(serve_ports[1])
        undo.callback(another.stop)
        until_ready(another, f"http://127.0.0.1:{serve_ports[1]}/healthz")
        balancer = Balancer(front, serve_ports)
        undo.callback(balancer.stop)
        yield Platform(site, servers, prefect, serve_ports, another, balancer)
        assert services.alive, services.last_words()


@pytest.mark.parametrize("which", [0, 1])
def test_one_of_each_is_killed_in_mid_canary_and_nobody_notices(platform: Platform, which: int) -> None:
    site = platform.site
    source = site.source()
    rollout = site.begin(source, min_time=10.0)
    with site.traffic() as requests:
        site.in_phase(rollout, "canarying")
        eventually(lambda: _canaries(site, rollout), "a canary attempt has started")
        looks = len(site.platform.looks(rollout))
        platform.kill(which)
        served = dict(platform.prefect.taken)
        meanwhile = site.submit()
        eventually(lambda: len(site.platform.looks(rollout)) > looks + 2, "the gates are looked at again")
        site.result(meanwhile, 240)
        left, right = (platform.prefect.taken[port] - served[port] for port in platform.prefect.backends)
        assert (left, right)[which] == 0
        assert (left, right)[1 - which] > 0
        platform.start_again(which)
        platform.all_answer()
        ended = site.ended(rollout, 300)
    assert ended.phase is Phase.PROMOTED, ended.reason
    assert ended.release == tree_digest(source)
    assert {cloud.stable for cloud in site.platform.state().clouds.values()} == {ended.release}
    assert "flow-restarted" not in site.kinds(rollout)
    site.all_succeeded([*requests, meanwhile])
    for request in [*requests, meanwhile]:
        *before, _ = site.platform.request(request).attempts
        # none was lost; a canary that still waits when its rollout is over goes to stable, as ever
        assert [each for each in before if each.state is not AttemptState.SUPERSEDED] == []
    _, samples = site.platform.attempts(rollout)
    assert [sample for sample in samples if sample.outcome is Outcome.BAD] == []
    both = dict(platform.prefect.taken)
    eventually(lambda: all(platform.prefect.taken[port] > both[port] for port in both), "both serve again")


def test_both_replicas_of_serve_tell_the_same(platform: Platform) -> None:
    """Whoever asks either of them reads one store; only the one that saw an attempt's run links to it."""
    seen = [platform.site.api.get("/requests").json()["items"] for _ in platform.serve_ports]
    for request in itertools.chain(*seen):
        for attempt in request["attempts"]:
            del attempt["flow_run_url"]
    assert seen[0]
    assert seen[0] == seen[1]


def test_without_the_shared_password_it_says_which_variable_to_set(platform: Platform) -> None:
    stranger = PrefectApi(platform.site.spec.prefect.api_url)
    try:
        assert stranger.ok()  # its health is no secret
        with pytest.raises(UnreachableError, match="refuses the password") as refused:
            stranger.has_pool("east")
    finally:
        stranger.close()
    assert "PREFECT_API_AUTH_STRING" in refused.value.hint


class AtPostgres(Site):
    """One machine as ever; only Prefect's database is elsewhere."""

    database = ""

    def env(self) -> dict[str, str]:
        return {**super().env(), "PREFECT_API_DATABASE_CONNECTION_URL": self.database}


def test_one_server_on_postgresql_brings_a_release_out(
    tmp_path_factory: pytest.TempPathFactory, postgres: Postgres
) -> None:
    """`lora-ops up` with the database's URL in the environment: it migrates, and there is no SQLite."""
    site = AtPostgres(tmp_path_factory.mktemp("alone"))
    site.database = postgres.database("alone")
    scaled.patient(site)
    try:
        site.up()
        rollout = site.begin(site.source())
        with site.traffic() as requests:
            ended = site.ended(rollout, 300)
        assert ended.phase is Phase.PROMOTED, ended.reason
        site.all_succeeded(requests)
        assert postgres.count("alone", "flow_run") > len(requests)
        assert not list((site.base / "prefect").glob("*.db"))
    finally:
        left = site.stop()
    assert not left, left


def _canaries(site: Site, rollout: str) -> bool:
    starts, _ = site.platform.attempts(rollout)
    return any(start.track == Track.CANARY for start in starts)
