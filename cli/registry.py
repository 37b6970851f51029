"""Every command of `lora-ops`: where its function is, its one-line help, the options it shares with others.

Plain tuples and strings, so that `lora-ops --help` imports nothing else.
"""

from __future__ import annotations

Command = tuple[str, str, frozenset[str]]  # "module:function", help, shared options (cli/session.py)

JSON = frozenset({"json"})
REPORT = JSON | {"server"}
READ = REPORT | {"quiet"}
WRITE = READ | {"dry-run", "yes"}
OWN: frozenset[str] = frozenset()  # declares all of its options itself

COMMANDS: dict[str, Command] = {
    "init": (
        "cli.local.init:init",
        "Write a commented lora-ops.yaml to start from.",
        OWN,
    ),
    "doctor": ("cli.local.doctor:doctor", "Check this machine, the store, Prefect and the journal.", OWN),
    "up": ("cli.local.platform:up", "Start the platform on this machine.", OWN),
    "down": ("cli.local.platform:down", "Stop what `up` started.", OWN),
    "demo": (
        "cli.local.demo:demo",
        "Train, promote a good trainer, roll a broken one back: on this machine.",
        OWN,
    ),
    "serve": ("cli.local.serve:serve", "Run the API, /metrics and the reconciler.", OWN),
    "status": ("cli.status:status", "The platform at a glance.", READ),
    "deploy": ("cli.deploy:deploy", "Bring a new release of the trainer out, by canary.", WRITE),
    "train": ("cli.train:train", "Submit a training request.", WRITE),
    "version": ("cli.version:version", "The version of lora-ops.", JSON),
    "help": ("cli.topics:topic", "Help on a topic: environment, exit-codes, formatting.", OWN),
}

GROUPS: dict[str, tuple[str, dict[str, Command]]] = {
    "rollout": (
        "Watch and steer rollouts.",
        {
            "ls": ("cli.rollouts:ls", "List the rollouts, the newest first.", READ),
            "show": ("cli.rollouts:show", "One rollout: clouds, gates, the last look.", READ),
            "watch": (
                "cli.rollouts:watch",
                "Follow a rollout to its end; exits 9 if it is rolled back.",
                READ,
            ),
            "history": ("cli.rollouts:history", "Every decision, with who and why.", READ),
            "approve": ("cli.steer:approve", "Let a rollout that awaits approval go on.", WRITE),
            "reject": ("cli.steer:reject", "Refuse the approval: the rollout goes back.", WRITE),
            "promote": ("cli.steer:promote", "Promote now, without waiting for the gates.", WRITE),
            "pause": ("cli.steer:pause", "Stay at the present step.", WRITE),
            "resume": ("cli.steer:resume", "Go on after a pause.", WRITE),
            "abort": ("cli.steer:abort", "End a rollout and go back to stable.", WRITE),
            "rollback": ("cli.steer:rollback", "Go back to stable now.", WRITE),
        },
    ),
    "release": (
        "Look at releases of the trainer.",
        {
            "ls": ("cli.releases:ls", "List the releases, the newest first.", READ),
            "show": ("cli.releases:show", "One release, by digest or its beginning.", READ),
        },
    ),
    "gate": (
        "Understand the gates.",
        {
            "explain": (
                "cli.gates:explain",
                "Counts, evidence, verdict, and what would decide; for bare numbers too, offline.",
                REPORT,
            ),
        },
    ),
    "runs": (
        "Follow training requests.",
        {
            "ls": ("cli.runs:ls", "List the requests, the newest first.", READ),
            "show": ("cli.runs:show", "One request: attempts, progress, result.", READ),
            "logs": ("cli.runs:logs", "What the newest attempt printed; -f follows.", REPORT),
            "watch": ("cli.runs:watch", "Follow a request to its end; exits 0, 100, 101, 102 or 103.", READ),
            "cancel": ("cli.runs:cancel", "Cancel a request.", WRITE),
            "retry": ("cli.runs:retry", "Submit a finished request anew.", WRITE),
        },
    ),
    "data": (
        "Look at datasets.",
        {"check": ("cli.local.data:check", "Decode a config's whole dataset; list all that is wrong.", JSON)},
    ),
    "cloud": (
        "Add clouds and look at them; take one out of service.",
        {
            "add": ("cli.local.clouds:add", "Add a kubernetes cloud, or change one; check all of it.", OWN),
            "check": ("cli.local.clouds:check", "Check clouds, down to a pod in them.", OWN),
            "ls": ("cli.clouds:ls", "List the clouds.", READ),
            "show": ("cli.clouds:show", "One cloud.", READ),
            "drain": ("cli.clouds:drain", "Empty a cloud: what runs there moves.", WRITE),
            "undrain": ("cli.clouds:undrain", "Take a cloud back into service.", WRITE),
        },
    ),
    "manifests": (
        "Kubernetes manifests of the platform.",
        {"render": ("cli.local.manifests:render", "Print them, or write a file a cloud, for GitOps.", OWN)},
    ),
    "storage": (
        "Look after the store and its backup.",
        {
            "check": ("cli.local.storage:check", "Try out the store and its backup; a remedy a line.", JSON),
            "sync": (
                "cli.local.storage:sync",
                "Bring the backup up to date; --restore goes the other way.",
                JSON | {"dry-run", "yes"},
            ),
            "gc": (
                "cli.local.storage:gc",
                "Delete what nothing can need any more.",
                JSON | {"dry-run", "yes"},
            ),
        },
    ),
}

SECTIONS: dict[str, tuple[str, ...]] = {
    "This machine": ("init", "doctor", "up", "down", "serve", "demo"),
    "Deliver": ("deploy", "rollout", "release", "gate"),
    "Train": ("train", "runs", "data"),
    "Platform": ("status", "cloud", "manifests", "storage", "version", "help"),
}


def summary(name: str) -> str:
    """The one-line help of a top-level command or group."""
    return GROUPS[name][0] if name in GROUPS else COMMANDS[name][1]


def group_overview(name: str) -> str:
    """The text of `lora-ops GROUP --help`."""
    text, table = GROUPS[name]
    lines = [f"Usage: lora-ops {name} COMMAND [ARGS]...", "", text, "", "Commands:"]
    width = max(len(command) for command in table) + 2
    lines += [f"  {command:<{width}}{one_line}" for command, (_, one_line, _) in table.items()]
    return "\n".join([*lines, "", f"`lora-ops {name} COMMAND --help` tells more."])


def overview() -> str:
    """The text of `lora-ops --help`."""
    lines = [
        "Usage: lora-ops COMMAND [ARGS]...",
        "",
        "Progressive delivery for training platforms: canary, promote and roll back LoRA trainers.",
    ]
    for title, names in SECTIONS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:<10}{summary(name)}" for name in names]
    lines += [
        "",
        "Options:",
        "  --version     The version of lora-ops.",
        "  --debug       Show the traceback of an error.",
        "  --help        This text; `lora-ops COMMAND --help` for a command.",
    ]
    return "\n".join(lines)
