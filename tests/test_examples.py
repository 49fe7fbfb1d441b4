"""The launch examples start a run, go on with it, and do as Slurm asks."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from support.tiny_models import run_config, write_blobs
from support.waiting import PATIENCE, wait_until

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path for path in EXAMPLES.rglob("*") if path.suffix in (".sh", ".sbatch"))
#: What a node's Slurm would do for a job on one machine.
STUBS = {
    "srun": 'exec "$@"',
    "scontrol": 'case $1 in show) echo localhost ;; requeue) echo "$2" > "$REQUEUED" ;; esac',
}

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the examples are shell scripts")


def stub(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Two processes on a machine without GPUs, which calls itself the only machine of job 42."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in STUBS.items():
        stub(commands, name, body)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        job = 10_000 + free.getsockname()[1] % 10_000
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PROCESSES": "2",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "SLURM_NNODES": "1",
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NODELIST": "localhost",
        "REQUEUED": str(tmp_path / "requeued"),
    }


def test_the_examples_are_known() -> None:
    assert [path.name for path in SCRIPTS] == ["train.sbatch", "torchrun.sh"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_an_example_is_sound_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_an_example_starts_and_resumes(tmp_path: Path, environment: dict[str, str], script: Path) -> None:
    config = run_config("codec", write_blobs(tmp_path / "store"), tmp_path / "elsewhere", steps=2, data={"crop": 32})
    (tmp_path / "run.json").write_text(config.model_dump_json())
    output = tmp_path / "out"
    output.mkdir()
    (output / "run.json").write_text("{}")
    (output / "metrics.jsonl").write_text('{"step": 1}\n')  # died before its first checkpoint

    for steps in (2, 4):
        words = [script, tmp_path / "run.json", output, "--set", f"steps={steps}", "--quiet"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        log = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in log] == list(range(1, steps + 1))
        if steps == 2:
            first = log
    assert log[:2] == first  # not begun anew
    assert (output / "codec").is_dir()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_failed_run_is_a_failed_job(tmp_path: Path, environment: dict[str, str], script: Path) -> None:
    stub(tmp_path / "bin", "torchrun", "exit 7")
    assert subprocess.run([script, "run.yaml", tmp_path / "out"], env=environment, check=False).returncode == 7


def test_slurms_last_minutes_put_the_job_back_into_the_queue(tmp_path: Path, environment: dict[str, str]) -> None:
    stub(tmp_path / "bin", "torchrun", f"echo now > {tmp_path / 'running'}; exec sleep {PATIENCE}")
    script = EXAMPLES / "slurm" / "train.sbatch"
    requeued = tmp_path / "requeued"
    job = subprocess.Popen([script, "run.yaml", tmp_path / "out"], env=environment, start_new_session=True)
    try:
        wait_until((tmp_path / "running").is_file)
        job.send_signal(signal.SIGUSR1)
        wait_until(lambda: requeued.is_file() and requeued.read_text().strip())
        assert requeued.read_text().strip() == environment["SLURM_JOB_ID"]
    finally:
        os.killpg(job.pid, signal.SIGTERM)
        job.wait()


def test_the_notebook_style_example_runs_as_a_script(tmp_path: Path) -> None:
    pytest.importorskip("slicerio", reason="the example's CT comes with slicerio")
    command = [sys.executable, str(EXAMPLES / "segment_a_scan.py")]
    printed = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "liver" in printed
    assert sorted(path.name for path in (tmp_path / "meddelinea_demo").iterdir()) == ["mask.json", "mask.nii.gz"]
