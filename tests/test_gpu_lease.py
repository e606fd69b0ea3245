"""The script for a lease of a GPU goes on, whatever becomes of its parts."""

import json
import time

import gpu_lease
from gpu_lease import Part

ROW = {"what": "update", "name": "step", "median": 0.5, "images": 4, "memory": 2**31, "peak": None}


def test_parts_that_fail_hang_or_cannot_run_cost_the_others_nothing(tmp_path):
    def python(name, limit, program, **options):
        return gpu_lease.run(Part(name, limit, ["-c", program], **options), tmp_path, left=60)

    written = json.dumps({"rows": [ROW | {"share": {"matrix": 0.25, "bandwidth": None}}]})
    start = time.monotonic()
    done = [
        python("fails", 20, "raise SystemExit(4)"),
        python("hangs", 1, "import subprocess; subprocess.run(['sleep', '60'])"),
        python("lacks", 20, "", needs=("no_such_module",)),
        python(
            "works",
            20,
            f"open({gpu_lease.results(tmp_path, 'works')!r}, 'w').write('''{written}''')",
        ),
    ]
    assert time.monotonic() - start < 20
    assert [part["result"] for part in done] == [
        "failed with 4",
        "took too long",
        "left out, without no_such_module",
        "done",
    ]
    gpu_lease.report(tmp_path, done)
    table = (tmp_path / "results.md").read_text()
    assert "| works | update: step | 500 | 125 | 2 |  | 0.25 |  |" in table
    assert "| hangs | took too long |" in table
    assert len(json.loads((tmp_path / "results.json").read_text())["figures"]) == 1


def test_the_parts_fit_a_lease(tmp_path):
    parts = gpu_lease.plan(tmp_path, small=False)
    assert len({part.name for part in parts}) == len(parts)
    assert sum(part.limit for part in parts[:-1]) <= 20 * 60  # the last one is an extra
