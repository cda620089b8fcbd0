"""Settings from the environment, and their documentation."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.core import checks

from config import apps, env

DOCUMENT = env.REPOSITORY / "docs" / "configuration.md"


def problems(**variables: str) -> list[str]:
    with pytest.raises(env.SettingsError) as caught:
        env.read({f"MDI_{name}": value for name, value in variables.items()})
    return [str(problem) for problem in caught.value.problems]


def test_defaults_need_nothing() -> None:
    assert env.read({}) == env.Environment()
    assert env.read({"MDI_PORT": "", "DATABASE_URL": "postgresql://another/project"}) == env.Environment()


def test_values_are_typed() -> None:
    read = env.read(
        {"MDI_PORT": "9000", "MDI_DEMO": "0", "MDI_ALLOWED_HOSTS": "a.example, b.example", "MDI_VAR_DIR": "data"}
    )
    assert (read.port, read.demo, read.allowed_hosts) == (9000, False, ("a.example", "b.example"))
    assert read.var_dir == Path.cwd() / "data"


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"PROT": "1"}, "MDI_PROT: is no setting of this service, did you mean MDI_PORT? (config.E001)"),
        ({"PORT": "x"}, "MDI_PORT: not a valid integer, was 'x' (config.E002)"),
        ({"PORT": "70000"}, "MDI_PORT: must be between 1 and 65535, was '70000' (config.E002)"),
        ({"DEMO": "perhaps"}, "MDI_DEMO: not a valid boolean, was 'perhaps' (config.E002)"),
        (
            {"PULSAR_URL": "http://h"},
            "MDI_PULSAR_URL: must be pulsar://… or pulsar+ssl://…, was 'http://h' (config.E002)",
        ),
        ({"REDIS_URL": "redis://h:99999"}, "MDI_REDIS_URL: port out of range 0-65535 (config.E002)"),
        (
            {"DATABASE_URL": "mysql://u:secret@h"},
            "MDI_DATABASE_URL: must be postgresql://… or postgres://… (config.E002)",
        ),
        ({"LOG_LEVEL": "loud"}, "MDI_LOG_LEVEL: must be one of debug, info, warning, error, was 'loud' (config.E002)"),
        ({"SECRET_KEY": "short"}, "MDI_SECRET_KEY: must have at least 32 characters (config.E002)"),
        (
            {"PULSAR_TENANT": "a/b"},
            "MDI_PULSAR_TENANT: must be lower-case letters, digits and hyphens, was 'a/b' (config.E002)",
        ),
    ],
)
def test_each_problem_is_one_clear_line(variables: dict[str, str], problem: str) -> None:
    assert problems(**variables) == [problem]


def test_all_problems_are_told_at_once() -> None:
    assert [line.split(":")[0] for line in problems(NOPE="1", PORT="x")] == ["MDI_NOPE", "MDI_PORT"]


@pytest.mark.parametrize("command", [("check",), ("run_stack",), ("migrate",)])
def test_a_bad_setting_stops_every_command(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "manage.py", *command],
        env=os.environ | {"MDI_PORT": "eighty"},
        cwd=env.REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "MDI_PORT: not a valid integer, was 'eighty' (config.E002)\n"


def test_signing_key_is_generated_and_stays(tmp_path: Path) -> None:
    variables = {"MDI_VAR_DIR": str(tmp_path)}
    first = env.load(variables)
    assert len(first.secret_key) == 64
    assert env.load(variables) == first
    assert first.secret_key not in repr(first)


def test_unusable_folder_stops_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        env.load({"MDI_VAR_DIR": "/proc/nowhere"})
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("MDI_VAR_DIR: cannot make the data folder /proc/nowhere")


def test_checks_report_what_appears_later(monkeypatch: pytest.MonkeyPatch) -> None:
    assert apps.check_environment() == []
    monkeypatch.setenv("MDI_PROT", "1")
    monkeypatch.setenv("MDI_PORT", "x")
    assert [(found.id, found.level) for found in apps.check_environment()] == [
        ("config.E001", checks.ERROR),
        ("config.E002", checks.ERROR),
    ]


def test_check_warns_of_debug_that_others_can_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDI_DEBUG", "1")
    assert apps.check_environment() == []
    monkeypatch.setenv("MDI_ALLOWED_HOSTS", "example.org")
    assert [found.id for found in apps.check_environment()] == ["config.W001"]


@pytest.mark.parametrize("line", env.markdown().splitlines())
def test_every_setting_has_its_line_in_the_documentation(line: str) -> None:
    assert line in DOCUMENT.read_text(), "print the table with `python -m config.env`"


def test_documentation_names_no_setting_that_is_gone() -> None:
    documented = {line.split("`")[1] for line in DOCUMENT.read_text().splitlines() if line.startswith("| `MDI_")}
    assert documented == {line.variable for line in env.table() if not line.detail.is_internal}
