"""Each rule of the diagnosis on readings made by hand, whose verdict is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gradscope import schema
from gradscope.diagnosis.comparison import compare
from gradscope.diagnosis.findings import Finding
from gradscope.diagnosis.ledger import ledger
from gradscope.diagnosis.verdict import diagnose
from gradscope.errors import GradscopeError
from gradscope.runs.run import Run
from handmade import chain, falling, make_run

LAYERS = chain(6)  # 5 hidden weight layers with their activations, one output layer
N = len(LAYERS)


def found(run: Run, verdict: str) -> Finding:
    """Return the one finding of `run` with this verdict."""
    (finding,) = [f for f in diagnose(run).findings if f.verdict == verdict]
    return finding


def test_a_signal_that_loses_two_decades_vanishes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", LAYERS, {"signal_norm": falling(N, 3.0, 40)})
    diagnosis = diagnose(run)
    assert diagnosis.verdict == diagnosis.start == diagnosis.end == "vanishing"
    hidden = np.log10(falling(N, 3.0, 1)[0, [0, 8]])
    assert diagnosis.decades == pytest.approx(hidden[0] - hidden[1], rel=1e-5)


@pytest.mark.parametrize("decades", [-1.9, -1.0, 0.0, 1.0, 1.9])
def test_less_than_two_decades_either_way_are_healthy(tmp_path: Path, decades: float) -> None:
    run = make_run(tmp_path / "r", LAYERS, {"signal_norm": falling(N, decades, 40)})
    assert diagnose(run).verdict == "healthy"


def test_a_signal_that_gains_two_decades_explodes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", LAYERS, {"signal_norm": falling(N, -3.0, 40)})
    assert diagnose(run).verdict == "exploding"


@pytest.mark.parametrize("scale", [1 / 1024, 1024, 1e-12, 1e12])
@pytest.mark.parametrize("decades", [-3.0, -1.0, 1.0, 3.0])
def test_no_scaling_of_the_loss_moves_a_verdict(
    tmp_path: Path, scale: float, decades: float
) -> None:
    signal = falling(N, decades, 40)
    one = diagnose(make_run(tmp_path / "a", LAYERS, {"signal_norm": signal}))
    other = diagnose(make_run(tmp_path / "b", LAYERS, {"signal_norm": scale * signal}))
    assert one.verdict == other.verdict
    assert one.decades == pytest.approx(other.decades, abs=1e-5)


def test_vanishing_is_confirmed_by_slow_early_layers(tmp_path: Path) -> None:
    signal = falling(N, 4.0, 40)
    readings = {"signal_norm": signal, "weight_norm": 1.0, "update_norm": 0.01 * signal}
    finding = found(make_run(tmp_path / "r", LAYERS, readings), "vanishing")
    assert "confirmed" in finding.sentence
    assert finding.evidence["update_speed_decades"] < -1


def test_an_optimizer_that_moves_all_layers_alike_compensates_vanishing(tmp_path: Path) -> None:
    readings = {"signal_norm": falling(N, 4.0, 40), "weight_norm": 1.0, "update_norm": 1e-3}
    finding = found(make_run(tmp_path / "r", LAYERS, readings), "vanishing")
    assert "compensated by the optimizer" in finding.sentence
    assert finding.evidence["update_speed_decades"] == pytest.approx(0)


def test_a_run_that_was_ill_for_a_while_is_not_healthy(tmp_path: Path) -> None:
    signal = np.ones((100, N))
    signal[:50] = falling(N, -4.0, 50)
    diagnosis = diagnose(make_run(tmp_path / "r", LAYERS, {"signal_norm": signal}, n_steps=100))
    assert (diagnosis.start, diagnosis.verdict, diagnosis.end) == (
        "exploding",
        "exploding",
        "healthy",
    )
    (finding,) = diagnosis.findings
    assert finding.steps[0] == 0 and 49 <= finding.steps[1] < 70


def test_a_transient_at_init_is_told_apart_from_the_run(tmp_path: Path) -> None:
    signal = np.ones((100, N))
    signal[:3] = falling(N, -4.0, 3)
    diagnosis = diagnose(make_run(tmp_path / "r", LAYERS, {"signal_norm": signal}, n_steps=100))
    assert (diagnosis.start, diagnosis.verdict, diagnosis.end) == (
        "exploding",
        "healthy",
        "healthy",
    )
    assert "transient at init" in diagnosis.findings[0].sentence


def test_a_single_odd_batch_changes_nothing(tmp_path: Path) -> None:
    signal = np.ones((100, N))
    signal[60] = falling(N, 8.0, 1)
    run = make_run(tmp_path / "r", LAYERS, {"signal_norm": signal}, n_steps=100)
    assert diagnose(run).verdict == "healthy"


def test_without_signals_it_cannot_tell(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", LAYERS, {"grad_norm": 1.0, "weight_norm": 1.0})
    diagnosis = diagnose(run)
    assert diagnosis.verdict == diagnosis.start == "cannot tell: no signal recorded"


def test_first_layers_without_a_signal_are_no_healthy_ones(tmp_path: Path) -> None:
    signal = np.ones(N)
    signal[:4] = np.nan
    readings = {"signal_norm": signal, "grad_norm": 1.0}
    verdict = diagnose(make_run(tmp_path / "r", LAYERS, readings)).verdict
    assert (
        verdict == "cannot tell: no signal recorded at the first layers, such as 0 · fc0 (Linear)"
    )


def test_a_layer_in_between_without_a_signal_is_noted(tmp_path: Path) -> None:
    signal = np.ones(N)
    signal[4] = np.nan
    readings = {"signal_norm": signal, "grad_norm": 1.0}
    diagnosis = diagnose(make_run(tmp_path / "r", LAYERS, readings))
    assert diagnosis.verdict == "healthy"
    assert "No signal was recorded at layer 4 · fc2 (Linear)" in diagnosis.notes[0]


def test_without_steps_it_cannot_tell(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", LAYERS, {}, n_steps=0)
    with pytest.warns(UserWarning):
        assert diagnose(run).verdict == "cannot tell: no step recorded"


def test_few_steps_are_told_to_tell_little(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", LAYERS, {"signal_norm": falling(N, 4.0, 3)}, n_steps=3)
    diagnosis = diagnose(run)
    assert diagnosis.verdict == "vanishing"
    assert "Only 3 recorded steps" in diagnosis.notes[0]


def test_a_signal_that_underflows_to_zero_vanishes(tmp_path: Path) -> None:
    signal = falling(N, 40.0, 40)
    signal[signal < 1e-30] = 0
    diagnosis = diagnose(make_run(tmp_path / "r", LAYERS, {"signal_norm": signal}))
    assert diagnosis.verdict == "vanishing"
    assert diagnosis.decades == -np.inf
    assert "fc0" in diagnosis.findings[0].layers


def test_a_zero_before_healthy_layers_is_disconnected_not_vanishing(tmp_path: Path) -> None:
    signal = np.ones((40, N))
    signal[:, :4] = 0
    diagnosis = diagnose(make_run(tmp_path / "r", LAYERS, {"signal_norm": signal}))
    assert diagnosis.verdict == "disconnected"
    assert diagnosis.findings[0].layers == ("fc0", "fc1")


def test_zeros_behind_weights_that_are_still_zero_are_no_fault(tmp_path: Path) -> None:
    signal = np.ones((1, N))
    signal[:, 2:4] = 0
    weights = np.ones(N)
    weights[4] = 0
    readings = {"signal_norm": signal, "weight_norm": weights}
    assert diagnose(make_run(tmp_path / "r", LAYERS, readings, n_steps=1)).verdict == "healthy"


def test_a_layer_that_is_switched_off_is_dead(tmp_path: Path) -> None:
    layers = chain(6, "ReLU")
    signal, zero = np.ones((40, N)), np.full((40, N), 0.5)
    zero[20:, 5] = 1
    signal[20:, :5] = 0
    readings = {"signal_norm": signal, "zero_fraction": zero}
    diagnosis = diagnose(make_run(tmp_path / "r", layers, readings))
    assert diagnosis.verdict == "dead"
    assert diagnosis.start == "healthy"
    (finding,) = [f for f in diagnosis.findings if f.severity != "information"]
    assert finding.layers == ("act2",) and finding.steps == (20, 39)


def test_a_function_that_is_steepest_at_zero_is_not_dead_there(tmp_path: Path) -> None:
    zero, slope = np.zeros(N), np.full(N, 0.5)
    zero[5] = slope[5] = 1  # a tanh behind a layer that starts at zero
    readings = {"signal_norm": 1.0, "zero_fraction": zero, "derivative_mean": slope}
    assert diagnose(make_run(tmp_path / "r", LAYERS, readings)).verdict == "healthy"


def test_saturated_tanhs_are_found_and_half_open_relus_are_not(tmp_path: Path) -> None:
    readings = {"signal_norm": 1.0, "saturated_fraction": 0.6, "derivative_mean": 0.1}
    assert diagnose(make_run(tmp_path / "a", LAYERS, readings)).verdict == "saturated"
    assert diagnose(make_run(tmp_path / "b", chain(6, "ReLU"), readings)).verdict == "healthy"


def test_steps_of_nothing_but_nan_are_not_called_skipped(tmp_path: Path) -> None:
    metrics = schema.names(schema.LAYER_METRICS)
    steps = {"grad_norm": np.full(4, np.nan)}
    diagnosis = diagnose(
        make_run(tmp_path / "r", LAYERS, dict.fromkeys(metrics, np.nan), n_steps=4, steps=steps)
    )
    assert diagnosis.verdict == "cannot tell: no step has a reading other than NaN"
    assert not [note for note in diagnosis.notes if "skipped" in note]


def test_a_sentence_names_a_layer_as_one(tmp_path: Path) -> None:
    layers = [{**row, "name": "start"} if i == 1 else row for i, row in enumerate(LAYERS)]
    share = np.where(np.arange(N) == 1, 0.56, 0.0) * np.ones((40, N))
    readings = {"signal_norm": 1.0, "saturated_fraction": share, "derivative_mean": 0.1}
    sentence = found(make_run(tmp_path / "r", layers, readings), "saturated").sentence
    assert sentence.startswith("Up to 56% of the units of layer 1 · start (Tanh) work where")


def test_constant_hidden_outputs_have_collapsed(tmp_path: Path) -> None:
    spread = np.ones(N)
    spread[3] = 1e-6
    readings = {"signal_norm": 1.0, "activation_mean": 0.5, "activation_std": spread}
    diagnosis = diagnose(make_run(tmp_path / "r", LAYERS, readings))
    assert diagnosis.verdict == "collapsed"
    assert diagnosis.findings[0].layers == ("act1",)


def test_a_constant_output_layer_is_no_collapse(tmp_path: Path) -> None:
    spread = np.ones(N)
    spread[-1] = 0
    readings = {"signal_norm": 1.0, "activation_mean": 0.5, "activation_std": spread}
    assert diagnose(make_run(tmp_path / "r", LAYERS, readings)).verdict == "healthy"


@pytest.mark.parametrize(
    ("at_first", "remedy"), [(1e-6, "larger weights"), (0.5, "hold samples apart")]
)
def test_an_output_that_is_alike_for_all_samples_has_collapsed(
    tmp_path: Path, at_first: float, remedy: str
) -> None:
    spread = np.full((40, N), np.nan)
    spread[::8] = 0.7
    spread[::8, 6:] = 1e-6
    spread[0, 6:] = at_first
    run = make_run(tmp_path / "r", LAYERS, {"signal_norm": 1.0, "sample_spread": spread})
    diagnosis = diagnose(run)
    assert diagnosis.verdict == "collapsed"
    finding = found(run, "collapsed")
    assert finding.layers == ("fc3", "fc4", "fc5") and remedy in finding.remedies[0]


@pytest.mark.parametrize("alike", [slice(6, 7), slice(0, 2), slice(0)])
def test_a_layer_by_itself_may_be_alike_for_all_samples(tmp_path: Path, alike: slice) -> None:
    spread = np.full((40, N), np.nan)
    spread[::8] = 0.7
    spread[::8, alike] = 0
    run = make_run(tmp_path / "r", LAYERS, {"signal_norm": 1.0, "sample_spread": spread})
    assert diagnose(run).verdict == "healthy"


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_values_that_are_not_finite_explode(tmp_path: Path, value: float) -> None:
    signal, grad, total = np.ones((40, N)), np.ones((40, N)), np.ones(40)
    signal[30:] = grad[30:] = total[30:] = value
    weights = np.ones((40, N))
    weights[31:] = np.nan  # that step made them so
    readings = {"signal_norm": signal, "grad_norm": grad, "weight_norm": weights}
    run = make_run(tmp_path / "r", LAYERS, readings, steps={"grad_norm": total})
    diagnosis = diagnose(run)
    assert (diagnosis.start, diagnosis.verdict) == ("healthy", "exploding")
    assert diagnosis.findings[0].steps == (30, 39)


def test_steps_that_the_loss_scaler_skipped_are_no_explosion(tmp_path: Path) -> None:
    signal, skipped, total = np.ones((40, N)), np.zeros(40, dtype=bool), np.ones(40)
    signal[:5], skipped[:5], total[:5] = np.inf, True, np.inf
    run = make_run(
        tmp_path / "r",
        LAYERS,
        {"signal_norm": signal},
        steps={"skipped": skipped, "grad_norm": total},
    )
    assert diagnose(run).verdict == "healthy"


def test_readings_missing_at_some_steps_are_no_fault(tmp_path: Path) -> None:
    signal = np.ones((60, N))
    signal[::3, 2:4] = np.nan  # a block that stochastic depth left out
    run = make_run(tmp_path / "r", LAYERS, {"signal_norm": signal}, n_steps=60)
    assert diagnose(run).verdict == "healthy"


@pytest.mark.parametrize(
    ("speed", "verdict"),
    [(1e-8, "update-speed"), (1e-5, "healthy"), (1e-3, "healthy"), (0.05, "healthy"),
     (0.5, "update-speed")],
)  # fmt: skip
def test_steps_at_which_nothing_is_learnt_are_told_of(
    tmp_path: Path, speed: float, verdict: str
) -> None:
    readings = {"signal_norm": 1.0, "weight_norm": 1.0, "update_norm": speed}
    diagnosis = diagnose(make_run(tmp_path / "r", LAYERS, readings))
    assert diagnosis.verdict == verdict
    assert "Gradient flow healthy" in " ".join([diagnosis.summary, *diagnosis.beside])


def test_one_layer_out_of_the_usual_band_is_no_finding(tmp_path: Path) -> None:
    update = np.full(N, 1e-3)
    update[0], update[2] = 1e-7, 0.5
    readings = {"signal_norm": 1.0, "weight_norm": 1.0, "update_norm": update}
    diagnosis = diagnose(make_run(tmp_path / "r", LAYERS, readings))
    assert (diagnosis.verdict, diagnosis.findings) == ("healthy", ())
    assert "0 · fc0 (Linear) x 1.0e+4" in diagnosis.settings[1]


def test_layers_that_are_slow_as_their_gradient_vanishes_are_told_of_both(tmp_path: Path) -> None:
    readings = {"signal_norm": falling(N, 6.0, 40), "weight_norm": 1.0, "update_norm": 1e-9}
    diagnosis = diagnose(make_run(tmp_path / "r", LAYERS, readings))
    assert diagnosis.verdict == "vanishing"
    assert [finding.verdict for finding in diagnosis.findings] == ["vanishing", "update-speed"]


def test_a_container_that_owns_a_parameter_is_no_point_of_the_path(tmp_path: Path) -> None:
    layers = [
        {"layer": 0, "name": "(root)", "kind": "Net", "depth": 1, "parameters": 9},
        *({**row, "layer": i + 1, "depth": row["depth"] + 1} for i, row in enumerate(LAYERS)),
    ]
    signal = np.ones((40, N + 1))
    signal[:, 0] = 1e-6  # its output is the loss side of the net, not its first layer
    assert diagnose(make_run(tmp_path / "r", layers, {"signal_norm": signal})).verdict == "healthy"


def test_something_else_than_a_run_is_refused() -> None:
    with pytest.raises(GradscopeError, match=r"gradscope\.load"):
        diagnose("runs/plain")  # type: ignore[arg-type]


def test_layer_names_are_inert_in_the_notebook(tmp_path: Path) -> None:
    layers = [{**row, "name": f"<b>{row['name']}</b>"} for row in LAYERS]
    run = make_run(tmp_path / "r", layers, {"signal_norm": falling(N, 4.0, 40)})
    assert "<b>fc" not in diagnose(run)._repr_html_()


def test_the_frame_holds_every_finding(tmp_path: Path) -> None:
    readings = {"signal_norm": falling(N, 6.0, 40), "weight_norm": 1.0, "update_norm": 0.5}
    diagnosis = diagnose(make_run(tmp_path / "r", LAYERS, readings))
    frame = diagnosis.to_frame()
    assert frame["verdict"].tolist() == [f.verdict for f in diagnosis.findings]
    assert frame["verdict"].tolist() == ["vanishing", "update-speed"]
    for finding in diagnosis.findings:
        assert finding.sentence in str(diagnosis)


@pytest.mark.parametrize("seed", range(40))
def test_any_readings_get_a_diagnosis(tmp_path: Path, seed: int) -> None:
    """Zeros, NaN, infinities anywhere, few steps, few layers: a verdict, never a crash."""
    rng = np.random.default_rng(seed)
    layers = chain(int(rng.integers(1, 8)), str(rng.choice(["ReLU", "Tanh", "Sigmoid"])))
    n_steps = int(rng.choice([1, 2, 19, 20, 21, 45]))

    def any_values(width: int) -> np.ndarray:
        values = 10.0 ** rng.uniform(-30, 30, (n_steps, width))
        odd = rng.random((n_steps, width)) < rng.choice([0, 0.1, 0.9])
        values[odd] = rng.choice([0, np.nan, np.inf], odd.sum())
        values[:, rng.random(width) < rng.choice([0, 0.5])] = rng.choice([0, np.nan, np.inf])
        return values

    columns = [
        "grad_norm",
        "weight_norm",
        "update_norm",
        "signal_norm",
        "input_signal_norm",
        "activation_norm",
        "activation_mean",
        "activation_std",
        "derivative_mean",
        "zero_fraction",
        "saturated_fraction",
    ]
    shortcuts = [
        {
            "shortcut": i,
            "name": str(rng.choice(["fc1", "(root)", "block"])),
            "form": str(rng.choice(["identity", "projection", "gated", "concat"])),
            "split": str(rng.choice(["fc0", "act0", "", "nowhere"])),
            "join": "(root)",
            "branch": str(rng.choice(["fc1", "act1", ""])),
            "position": float(rng.choice([0, 0.3, 0.5, 1, np.nan])),
        }
        for i in range(rng.integers(0, 3))
    ]
    splits = ["total_norm", "shortcut_norm", "branch_norm", "energy_share", "branch_ratio"]
    run = make_run(
        tmp_path / "r",
        layers,
        {c: any_values(len(layers)) for c in columns if rng.random() < 0.9},
        n_steps=n_steps,
        shortcuts=shortcuts,
        shortcut_readings={c: any_values(len(shortcuts)) for c in splits},
        steps={
            "grad_norm": any_values(1)[:, 0],
            "skipped": rng.random(n_steps) < rng.choice([0, 0.5, 1]),
            "train_loss": any_values(1)[:, 0],
            "val_loss": any_values(1)[:, 0],
        },
    )
    diagnosis = diagnose(run)
    assert diagnosis.verdict.split(":")[0] in {*schema.VERDICTS, "cannot tell"}
    assert len(diagnosis.to_frame()) == len(diagnosis.findings)
    assert str(diagnosis) and diagnosis._repr_html_()
    assert str(compare([run, run]))
    ledger(run)


def test_a_recurrent_layer_is_noted_where_its_steps_were_not_read(tmp_path: Path) -> None:
    layers = [{**row, "kind": "RNN"} if row["name"] == "fc2" else row for row in LAYERS]
    notes = diagnose(make_run(tmp_path / "r", layers, {"signal_norm": 1.0})).notes
    assert any("time step" in note and "fc2 (RNN)" in note for note in notes)
