"""`python -m trainer.selfcheck` of the stand-in."""

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    behaviour = json.loads((Path(__file__).parent / "behaviour.json").read_text())
    ok = not behaviour.get("selfcheck_fails", False)
    packages = [{"name": "torch", "expected": "2.13.0", "found": "2.13.0" if ok else "2.1.0", "ok": ok}]
    sys.stdout.write(
        json.dumps({"ok": ok, "packages": packages, "step": {"ok": ok, "seconds": 0.0, "error": None}}) + "\n"
    )
    sys.exit(0 if ok else 1)
