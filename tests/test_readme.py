"""What the README says, run: its code, its commands, its pictures."""

import pathlib
import re
import subprocess
import sys

import pyro
import pytest
import torch

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"```bash\n(.*?)\n```", README, re.DOTALL)


def test_code_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 4
    names: dict = {}
    pyro.clear_param_store()
    with torch.random.fork_rng():
        for block in blocks:
            exec(compile(block, "README.md", "exec"), names)  # one namespace, as a reader would have
    losses = names["losses"]
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
    observed = names["x"].eq(0).float().mean(0)
    assert (names["fitted"].zi_probs - observed).abs().max() < 0.05
    assert names["result"].converged
    assert names["mcmc"].get_samples()["x_positive"].shape == (50,)


def test_there_are_two_commands_and_they_install_under_the_constraints() -> None:
    assert len(COMMANDS) == 2
    assert all(c.startswith("python -m venv .venv && ") and "-c constraints.txt" in c for c in COMMANDS)


def test_the_gate_runs_the_readme_command() -> None:
    line = subprocess.run(
        ["bash", "-c", "eval \"$(sed -n '/^readme_command/,/^}/p' .ci/run)\"; readme_command 'python -m pytest'"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert line.stdout.strip() == COMMANDS[1]


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, pathlib.Path]:
    out = tmp_path_factory.mktemp("job") / "deep" / "out"
    command = [sys.executable, "tutorials/fit_pbmc68k.py", "--out", str(out), "--steps", "400"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout, out


def test_the_main_job_finds_the_known_markers(job: tuple[str, pathlib.Path]) -> None:
    printed, out = job
    rows = [line.split(",") for line in (out / "genes.csv").read_text().splitlines()]
    change = {row[0]: float(row[1]) for row in rows[1:]}
    assert len(change) == 200
    assert {row[0] for row in rows[1:26]} >= {"LYZ", "S100A9", "CST3", "FCN1", "IL32", "CD3D"}
    assert all(change[gene] > 1 for gene in ("LYZ", "S100A8", "S100A9", "CST3", "FCN1", "CFD"))
    assert all(change[gene] < -1 for gene in ("CD3D", "CD3E", "IL32", "NKG7"))
    assert "LYZ" in printed


def test_its_parts_sum_to_the_whole(job: tuple[str, pathlib.Path]) -> None:
    rows = [line.split(",") for line in (job[1] / "genes.csv").read_text().splitlines()]
    assert rows[0] == ["gene", "log_fc", "log_fc_sd", "log_fc_detection", "log_fc_abundance", "log_fc_dispersion"]
    for row in rows[1:]:
        assert float(row[1]) == pytest.approx(sum(map(float, row[3:])), abs=3e-4)


def test_it_draws_a_picture(job: tuple[str, pathlib.Path]) -> None:
    assert (job[1] / "fit.png").read_bytes().startswith(b"\x89PNG")
