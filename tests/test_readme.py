"""The commands of the README; tests/docs checks its code and links."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
_ROW = r"^  (\S+) +([+-][\d.]+) +([+-][\d.]+) to ([+-][\d.]+)"
COMMANDS = re.findall(r"```bash\n(.*?)\n```", README, re.DOTALL)


def test_there_are_two_commands_and_they_install_under_the_constraints() -> None:
    assert len(COMMANDS) == 2
    assert all(c.startswith("python -m venv .venv && ") and "-c constraints.txt" in c for c in COMMANDS)


def test_ci_runs_the_readme_command() -> None:
    line = subprocess.run(
        ["bash", "-c", "eval \"$(sed -n '/^readme_command/,/^}/p' .ci/run)\"; readme_command 'python -m pytest'"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert line.stdout.strip() == COMMANDS[1]


def test_the_demo_still_finds_what_is_shown(tmp_path: pathlib.Path) -> None:
    command = COMMANDS[0].split("&& ")[-1]
    assert command == "pyro-zilognormal demo --out out"
    start = [sys.executable, "-c", "import sys; from pyro_zilognormal.singlecell.cli import main; sys.exit(main())"]
    ran = subprocess.run(
        [*start, *command.split()[1:-1], str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    shown = README.split("```text\n")[1].split("\n```")[0].splitlines()
    assert sum(bool(re.match(_ROW, line)) for line in shown) == 4
    printed = iter(ran.stdout.splitlines())
    for line in shown:  # in this order, to the last digit
        assert line in printed, line
