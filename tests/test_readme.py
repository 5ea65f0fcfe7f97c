"""The commands of the README; tests/cli/test_demo.py checks what the first prints, tests/docs its code and links."""

import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"```bash\n(.*?)\n```", README, re.DOTALL)


def test_there_are_two_commands_and_they_install_under_the_constraints() -> None:
    assert len(COMMANDS) == 2
    assert all(c.startswith("python -m venv .venv && ") and "-c constraints.txt" in c for c in COMMANDS)
    assert COMMANDS[0].endswith("&& pyro-zilognormal demo --out out")


def test_ci_runs_the_readme_command() -> None:
    line = subprocess.run(
        ["bash", "-c", "eval \"$(sed -n '/^readme_command/,/^}/p' .ci/run)\"; readme_command 'python -m pytest'"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert line.stdout.strip() == COMMANDS[1]
