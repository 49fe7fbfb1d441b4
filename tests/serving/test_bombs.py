"""A running server is sent what takes gigabytes to read: its memory and its disk are measured while it answers."""

import time
from pathlib import Path

import httpx
import pytest

from support.bombs import bombs
from support.running_server import RunningServer
from support.waiting import PATIENCE

#: Memory that the worker may take, with --unpacked-mib 256.
MOST_BYTES = 1200 * 1000 * 1000


def peak_bytes(pid: int) -> dict[int, int]:
    """The most memory that each process below a process has held until now, by their ids."""
    peaks = {}
    for process in Path("/proc").iterdir():
        try:
            status = (process / "status").read_text()
        except (OSError, ValueError):
            continue
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        if fields.get("PPid") == str(pid) and "VmHWM" in fields:
            peaks[int(process.name)] = int(fields["VmHWM"].split()[0]) << 10
    return peaks


def held_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_bombs_are_refused_in_little_memory_and_leave_nothing(tmp_path: Path, scan: Path) -> None:
    if not Path("/proc/self/status").is_file():
        pytest.skip("the memory of other processes is read from /proc")
    peak = 0
    limits = ("--unpacked-mib", "256", "--upload-mib", "64", "--job-minutes", "5")
    with RunningServer(tmp_path / "jobs", *limits) as server, httpx.Client(base_url=server.address) as client:
        for name, make in bombs(tmp_path).items():
            content = make()
            began = time.monotonic()
            reply = client.post("/api/jobs", content=content, timeout=PATIENCE)
            state, message = str(reply.status_code), reply.json().get("detail", "")
            if reply.status_code == 201:
                identity, most = reply.json()["id"], 0
                while state in ("201", "queued", "running"):
                    job = client.get(f"/api/jobs/{identity}", timeout=PATIENCE).json()
                    state, message = job["state"], job["message"]
                    most = max([most, *peak_bytes(server.process.pid).values()])
                    time.sleep(0.05)
                peak = max(peak, most)
            left = held_bytes(tmp_path / "jobs" / "jobs")
            seconds = time.monotonic() - began
            print(
                f"{name}: {len(content) / 1000:.0f} kB, {seconds:.1f} s, {peak / 1e6:.0f} MB, left {left} B: {message}"
            )
            assert state in ("refused", "415"), name
            assert left == 0, name
            assert str(tmp_path) not in message, name
        print(f"peak memory of the worker: {peak / 1e6:.0f} MB")
        assert 0 < peak < MOST_BYTES
        reply = client.post("/api/jobs", content=scan.read_bytes(), timeout=PATIENCE)  # it is as well as before
        while client.get(f"/api/jobs/{reply.json()['id']}").json()["state"] in ("queued", "running"):
            time.sleep(0.1)
        assert client.get(f"/api/jobs/{reply.json()['id']}").json()["state"] == "done"
