"""The examples on shortcuts, run as a user runs them, with few steps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gradscope

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(script: str, folder: Path, *options: str, path: Path = EXAMPLES.parent):
    return subprocess.run(
        [sys.executable, EXAMPLES / script, "--no-dashboard", *options],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{path}:{EXAMPLES.parent}"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> tuple[gradscope.Run, gradscope.Run, str]:
    """Return the residual and the plain run of 3 steps, and what the example printed."""
    pytest.importorskip("torchvision", reason="torchvision is not installed; the example needs it")
    folder = tmp_path_factory.mktemp("resnet")
    done = run_example("resnet_shortcuts.py", folder, "--steps", "3")
    assert done.returncode == 0, done.stderr
    residual, plain = (gradscope.load(folder / "runs" / f"{n}18") for n in ("resnet", "plain"))
    return residual, plain, done.stdout


@pytest.mark.slow
def test_resnet_shortcuts_prints_the_split_and_the_cut_of_every_block(
    resnet: tuple[gradscope.Run, gradscope.Run, str],
) -> None:
    residual, plain, printed = resnet
    assert len(residual.steps) == len(plain.steps) == 3
    assert residual.shortcuts.form.value_counts().to_dict() == {"identity": 5, "projection": 3}
    assert plain.shortcuts.empty
    lines = [line.split() for line in printed.splitlines() if line]
    blocks = [words for words in lines if words[1:2] in (["identity"], ["projection"])]
    assert [words[0] for words in blocks] == residual.shortcuts.name.tolist()
    assert residual.shortcut_readings.notna().all(axis=None)
    for words, (_, row) in zip(
        blocks, residual.shortcut_readings.groupby("shortcut").median().iterrows(), strict=True
    ):
        assert words[2:5] == [
            f"{row[c]:.2e}" for c in ("total_norm", "shortcut_norm", "branch_norm")
        ]
        assert words[6] == f"{row.energy_share:.2f}"
    signals = {words[0]: words[1:] for words in lines if words[0].endswith(("conv1", "conv2"))}
    assert len(signals) == 17
    assert all(float(number) > 0 for numbers in signals.values() for number in numbers)
    assert "A net with its shortcuts cut is not the plain net" in printed


@pytest.mark.slow
def test_plain_twin_of_a_resnet_has_its_weights_and_no_shortcut(
    resnet: tuple[gradscope.Run, gradscope.Run, str],
) -> None:
    residual, plain = (
        run.frame().query("step == 0").set_index("name").weight_norm.dropna() for run in resnet[:2]
    )
    assert len(plain) == 2 * 17 + 1  # 17 convolutions, a norm after each, and the last layer
    assert plain.equals(residual[plain.index])


@pytest.mark.slow
def test_gpt2_residual_stream_prints_two_additions_a_block_and_paths(tmp_path: Path) -> None:
    pytest.importorskip(
        "transformers", reason="transformers is not installed; the example needs it"
    )
    done = run_example("gpt2_residual_stream.py", tmp_path, "--steps", "3")
    assert done.returncode == 0, done.stderr
    run = gradscope.load(tmp_path / "runs" / "gpt2")
    names = [f"transformer.h.{block}.ln_{norm}" for block in range(8) for norm in (1, 2)]
    assert run.shortcuts.branch.tolist() == names
    assert (run.shortcuts.form == "identity").all()
    assert run.shortcut_readings.notna().all(axis=None)
    lines = [line.split() for line in done.stdout.splitlines()]
    printed = [words for words in lines if len(words) == 6 and words[1] in names]
    assert [words[1] for words in printed] == names
    for words, share in zip(printed, run.shortcut_readings.energy_share[:16], strict=True):
        assert words[2] == f"{share:.3f}"
    paths = [words for words in lines if len(words) == 4 and words[3].endswith("%")]
    shares = sum(float(words[3].rstrip("%")) for words in paths)
    assert shares == pytest.approx(200, abs=1)  # before and after training


@pytest.mark.parametrize(
    "script, needs",
    [("resnet_shortcuts.py", "torchvision"), ("gpt2_residual_stream.py", "transformers")],
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    script: str, needs: str, tmp_path: Path
) -> None:
    (tmp_path / needs).mkdir()  # found first, and broken
    (tmp_path / needs / "__init__.py").write_text("raise ImportError\n")
    done = run_example(script, tmp_path, "--steps", "1", path=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (f"this example needs {needs}: pip install 'gradscope-torch[examples]'\n")


@pytest.mark.slow
@pytest.mark.parametrize("script", ["resnet_shortcuts.py", "gpt2_residual_stream.py"])
def test_no_steps_are_refused(script: str, tmp_path: Path) -> None:
    package = "torchvision" if script.startswith("resnet") else "transformers"
    pytest.importorskip(package, reason=f"{package} is not installed; the example needs it")
    done = run_example(script, tmp_path, "--steps", "0")
    assert done.returncode == 2 and "--steps must be 1 or more, got 0" in done.stderr


@pytest.mark.slow
def test_what_if_finds_shortcuts_for_a_plain_net_of_50_layers(tmp_path: Path) -> None:
    done = run_example("what_if.py", tmp_path, "--steps", "25")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Best: shortcuts around pairs of layers. D -11.9 -> ")
    run = gradscope.load(tmp_path / "runs" / "plain-50")
    assert (len(run.steps), len(run.shortcuts)) == (25, 0)
    mended = gradscope.load(run.path / "what-if" / "shortcuts")
    assert len(mended.shortcuts) == 24
    assert "\n  tried: shortcuts around pairs of layers: D -11.9 -> " in done.stdout
