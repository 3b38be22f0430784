"""The command line: what it prints, what it refuses, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import synthetic
from gradscope.cli import main
from gradscope.diagnosis.verdict import diagnose
from gradscope.progress import tracked
from gradscope.runs.loading import load
from gradscope.storage.writer import RunWriter


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    synthetic.write_pair(tmp_path / "runs", n_steps=30)
    return tmp_path / "runs"


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command as a process of its own, as a user does."""
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [root, *sys.path]))}
    return subprocess.run(
        [sys.executable, "-m", "gradscope", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
    )


def test_runs_lists_name_model_steps_loss_status_and_verdict(runs: Path) -> None:
    result = command("runs", runs)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert (result.returncode, result.stderr) == (0, "")
    assert lines[0] == ["name", "model", "steps", "loss", "status", "verdict"]
    assert lines[1] == ["plain-50", "PlainNet", "30", "2.192", "closed", "vanishing"]
    assert lines[2] == ["residual-50", "ResidualNet", "30", "1.992", "closed", "healthy"]


def test_runs_as_json_is_for_scripts(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(runs), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in listed] == ["plain-50", "residual-50"]
    assert listed[0]["loss"] == load(runs / "plain-50").steps["train_loss"].iloc[-1]
    assert listed[1]["path"] == str(runs / "residual-50")
    assert listed[1]["verdict"] == "healthy"


def test_runs_of_a_folder_without_any_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"
    assert main(["runs", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_runs_lists_a_run_without_steps_or_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunWriter(tmp_path / "empty", {"model": "Net"}).close()
    assert main(["runs", str(tmp_path)]) == 0
    output = capsys.readouterr()
    assert output.out.splitlines()[1].split()[:5] == ["empty", "Net", "0", "-", "closed"]
    assert output.err.startswith("gradscope: warning: ")
    assert "no step is recorded" in output.err


def test_runs_leaves_a_broken_run_out_and_says_so(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "plain-50" / "run.json").write_text("{")
    assert main(["runs", str(runs)]) == 0
    output = capsys.readouterr()
    assert "residual-50" in output.out and "plain-50" not in output.out
    assert "run.json: broken" in output.err


def test_names_cannot_command_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunWriter(tmp_path / "run", {"model": "\x1b[2JNet\nfake"}).close()
    assert main(["runs", str(tmp_path)]) == 0
    assert "?[2JNet?fake" in capsys.readouterr().out


def test_diagnose_prints_the_verdict(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(runs / "plain-50")]) == 0
    assert capsys.readouterr().out.startswith("plain-50: vanishing\n")


def test_diagnose_as_json_is_for_scripts(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(runs / "plain-50"), "--json"]) == 0
    read = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    diagnosis = diagnose(load(runs / "plain-50"))
    assert read["verdict"] == diagnosis.verdict == "vanishing"
    assert read["decades"] == diagnosis.decades
    assert [finding["sentence"] for finding in read["findings"]] == [
        finding.sentence for finding in diagnosis.findings
    ]


def test_diagnose_as_json_has_null_for_what_is_no_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunWriter(tmp_path / "empty", {"model": "Net"}).close()
    assert main(["diagnose", str(tmp_path / "empty"), "--json"]) == 0
    read = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert read["decades"] is None


@pytest.mark.parametrize(
    ("run", "verdicts", "code"),
    [
        ("plain-50", "vanishing,exploding", 1),
        ("plain-50", "exploding, dead", 0),
        ("plain-50", "healthy", 0),
        ("residual-50", "vanishing,exploding", 0),
        ("residual-50", "healthy", 1),
    ],
)
def test_diagnose_fails_on_the_verdicts_named(
    runs: Path, run: str, verdicts: str, code: int
) -> None:
    assert main(["diagnose", str(runs / run), "--fail-on", verdicts]) == code


def test_diagnose_can_fail_on_a_run_that_tells_nothing(tmp_path: Path) -> None:
    RunWriter(tmp_path / "empty", {"model": "Net"}).close()
    assert main(["diagnose", str(tmp_path / "empty"), "--fail-on", "vanishing"]) == 0
    assert main(["diagnose", str(tmp_path / "empty"), "--fail-on", "cannot tell"]) == 1


def test_diagnose_refuses_to_fail_on_what_is_no_verdict(runs: Path) -> None:
    result = command("diagnose", runs / "plain-50", "--fail-on", "vanishing,explodng")
    assert result.returncode == 2
    assert result.stdout == ""
    assert "'explodng' is no verdict of a recording" in result.stderr


def test_report_writes_one_page_of_all_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = runs / "report.html"
    arguments = ["report", str(runs / "plain-50"), str(runs / "residual-50"), "-o", str(target)]
    assert main(arguments) == 0
    assert capsys.readouterr() == (f"wrote 2 runs to {target}\n", "")
    page = target.read_text()
    assert "plain-50" in page and "residual-50" in page and "Plotly.react(" in page
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0


def test_a_bar_is_shown_on_a_terminal_alone_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(tracked("abcd", "merging", 4)) == ["a", "b", "c", "d"]
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(tracked("abcd", "merging", 4)) == ["a", "b", "c", "d"]
    output, shown = capsys.readouterr()
    assert output == ""
    assert [f"{share}%" in shown for share in (0, 25, 50, 75, 100)] == [True] * 5
    assert shown.endswith("\r\x1b[K")


def test_export_writes_the_csv_of_the_run(runs: Path) -> None:
    target = runs / "report.csv"
    result = command("export", runs / "plain-50", "-o", target)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"wrote 1500 rows to {target}\n"
    frame = load(runs / "plain-50").frame()
    read = pd.read_csv(target, dtype=str).astype(frame.dtypes)
    pd.testing.assert_frame_equal(read, frame, check_exact=True)


def test_export_overwrites_only_with_force(runs: Path) -> None:
    target = runs / "report.csv"
    target.write_text("mine")
    refused = command("export", runs / "plain-50", "-o", target)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr.startswith(f"gradscope: {target}: exists already")
    assert refused.stderr.count("\n") == 1
    assert target.read_text() == "mine"
    assert command("export", runs / "plain-50", "-o", target, "--force").returncode == 0
    assert target.read_text().startswith("step,layer,")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runs", "nowhere"], "gradscope: nowhere: there is no such folder\n"),
        (["diagnose", "nowhere"], "gradscope: nowhere: there is no such folder\n"),
        (["export", "nowhere", "-o", "x.csv"], "gradscope: nowhere: there is no such folder\n"),
        (["dashboard", "nowhere"], "gradscope: nowhere: there is no such folder\n"),
        (["merge", "nowhere", "-o", "x"], "gradscope: nowhere: there is no such folder\n"),
        (["report", "nowhere", "-o", "x"], "gradscope: nowhere: there is no such folder\n"),
        (["export", ".", "-o", "x.csv"], "gradscope: .: not a run, it holds no run.json\n"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize(
    "arguments",
    [[], ["runs"], ["export", "run"], ["fly"], ["dashboard", ".", "--port", "99999"]],
)
def test_a_wrong_call_exits_with_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: gradscope" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["runs", "diagnose", "export", "report", "merge", "bench", "dashboard"]
)
def test_help_of_every_command_shows_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    assert f"example:\n  gradscope {name} " in capsys.readouterr().out


def test_a_missing_dashboard_package_gives_the_pip_line(runs: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['dash'] = None; sys.modules['gradscope_dashboard'] = None;"
        "from gradscope.cli import main; sys.exit(main(['dashboard', sys.argv[1]]))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", code, str(runs)], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 2
    assert "pip install 'gradscope-torch[dashboard]'" in result.stderr
    assert result.stderr.count("\n") == 1


def test_dashboard_prints_its_address_and_ends_with_ctrl_c(runs: Path) -> None:
    pytest.importorskip("dash", reason="the dashboard's packages are an extra")
    import signal
    import urllib.request

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "gradscope", "dashboard", str(runs), "--no-browser"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            address = next(word for word in line.split() if word.startswith("http://127.0.0.1:"))
            with urllib.request.urlopen(address) as page:
                assert page.status == 200
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert "Traceback" not in errors
    assert process.returncode in (0, 130)


# --- in a shell ---------------------------------------------------------------------------------


def in_bash(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script that calls the command as `gradscope`."""
    root = Path(__file__).parent.parent
    start = f'gradscope() {{ "{sys.executable}" -m gradscope "$@"; }}\n'
    return subprocess.run(
        ["bash", "-c", start + script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [root, *sys.path]))},
    )


@pytest.mark.parametrize("arguments", ["runs {}", "runs {} --json", "diagnose {}/plain-50"])
def test_output_that_nobody_reads_to_its_end_shows_no_traceback(runs: Path, arguments: str) -> None:
    result = in_bash(f"gradscope {arguments.format(runs)} | true; echo ${{PIPESTATUS[0]}}")
    assert (result.stdout, result.stderr) == ("141\n", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no disk that is always full")
def test_output_that_a_full_disk_refuses_is_told(runs: Path) -> None:
    result = in_bash(f"gradscope diagnose {runs}/plain-50 --fail-on vanishing > /dev/full; echo $?")
    assert result.stdout == "2\n"
    assert result.stderr == (
        "gradscope: cannot write the output: [Errno 28] No space left on device\n"
    )


def test_a_shell_completes_commands_options_and_folders(tmp_path: Path) -> None:
    pytest.importorskip("shtab", reason="shtab is not installed")
    (tmp_path / "runs").mkdir()
    (tmp_path / "report.csv").touch()
    result = in_bash(f"""
        cd {tmp_path}
        eval "$("{sys.executable}" -m shtab --shell=bash gradscope.cli.parser)"
        for words in "gradscope di" "gradscope diagnose --f" "gradscope diagnose r"; do
            COMP_WORDS=($words) COMP_CWORD=$(($(wc -w <<< "$words") - 1)) COMPREPLY=()
            _shtab_gradscope
            echo "${{COMPREPLY[@]}}"
        done""")
    assert result.stdout == "diagnose\n--fail-on\nruns\n", result.stderr


SCRIPT = """
import torch
from torch import nn
from beside import batches

def setup():
    torch.manual_seed(0)
    hidden = [part for _ in range(12) for part in (nn.Linear(8, 8), nn.Tanh())]
    model = nn.Sequential(*hidden, nn.Linear(8, 4))
    return model, nn.CrossEntropyLoss(), batches(), torch.optim.SGD(model.parameters(), 0.05, 0.9)

def wrong():
    return 3

def failing():
    raise OSError("no data")

if __name__ == "__main__":
    raise SystemExit("this is no training")
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text(
        "import torch\nbatches = lambda: [(torch.randn(16, 8), torch.arange(16) % 4)] * 4\n"
    )
    (tmp_path / "train.py").write_text(SCRIPT)
    return tmp_path / "train.py"


def test_what_if_tries_changes_on_what_a_function_of_a_script_returns(
    script: Path, tmp_path: Path
) -> None:
    asked = ["--changes", "he", "xavier", "--steps", 6, "--run", tmp_path / "run"]
    result = command("what-if", f"{script}:setup", *asked)
    assert result.returncode == 0, result.stderr
    assert "one copy at a time" in result.stderr
    lines = result.stdout.splitlines()
    assert {"He weights", "Xavier weights", "unchanged"} <= {line.split("  ")[0] for line in lines}
    assert lines[-1] == f"run: {tmp_path / 'run'}"
    assert (tmp_path / "run" / "what-if" / "he" / "run.json").is_file()


def test_what_if_as_json_is_for_scripts(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--changes", "lr/3", "--steps", "4", "--run", str(tmp_path / "run"), "--json"]
    assert main(["what-if", f"{script}:setup", *asked]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["change"] for row in told["tried"]] == ["unchanged", "learning rate x 1/3"]
    assert told["tried"][0]["verdict"] == "vanishing"


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("nothing", "has no function 'nothing'"),
        ("wrong", "must return (model, loss_fn, batches, optimizer), got int"),
        ("failing", "failed: OSError: no data"),
        ("", "write SCRIPT:FUNCTION, such as train.py:setup"),
    ],
)
def test_what_if_refuses_a_function_that_gives_no_training(
    script: Path, capsys: pytest.CaptureFixture[str], function: str, sentence: str
) -> None:
    assert main(["what-if", f"{script}:{function}"]) == 2
    assert sentence in capsys.readouterr().err
    assert main(["what-if", f"{script}.py:setup"]) == 2
    assert "there is no such script" in capsys.readouterr().err
