"""The table of many runs: cells, comparisons, verdicts, files, what is left out."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.parts import refusal
from w2s_plugins.errors import UserError
from w2s_plugins.made_of import to_plain
from w2s_plugins.study.collect import Collected, StudentRun, collect
from w2s_plugins.study.layout import StudyRun, load_plan, made_of_run, save_plan
from w2s_plugins.study.loss_table import Group, make_table, verdict, write_table
from w2s_plugins.study.report import write_report
from w2s_plugins.study.scores import NOT_SHOWN, NOT_WORTH, figures_of

from .conftest import Cli
from .runs import write_run

ACCURACIES = {"kd": 0.60, "adaptconf": 0.78, "hard": 0.605, "gce": 0.48}


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four losses with four seeds: one far above kd, one below, one alike."""
    root = tmp_path_factory.mktemp("study")
    for seed in range(4):
        for loss, accuracy in ACCURACIES.items():
            write_run(root, loss, seed, accuracy)
    return root


def cells_of(group: Group) -> dict[str, dict]:
    return {row.loss: row.for_file() for row in group.rows}


def change(run: Path, **changes: object) -> None:
    """Change a run's result.json."""
    file = run / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def runs_of(found: Collected, loss: str) -> list[StudentRun]:
    return found.runs.loc[found.runs["loss"] == loss, "run"].tolist()


def test_figures_and_verdicts(study: Path) -> None:
    found = collect(study)
    (group,) = make_table(found.runs)
    cells = cells_of(group)
    assert {loss: cell["verdict"] for loss, cell in cells.items()} == {
        "kd": "reference",
        "adaptconf": "better",
        "hard": "tie",
        "gce": "worse",
    }
    for loss, cell in cells.items():
        runs = runs_of(found, loss)
        accuracies = [
            100 * (run.answers["student"] == run.answers["target"]).mean() for run in runs
        ]
        gaps = [
            (run.figures["student"] - run.figures["weak"])
            / (run.figures["ceiling"] - run.figures["weak"])
            for run in runs
        ]
        assert cell["seeds"] == 4 and cell["student"]["value"] == pytest.approx(np.mean(accuracies))
        assert cell["pgr"]["value"] == pytest.approx(np.mean(gaps)), "by seed, then the mean"
        assert cell["pgr"]["sd"] == pytest.approx(np.std(gaps, ddof=1))
    versus = cells["adaptconf"]["versus"]
    assert versus["value"] == pytest.approx(
        cells["adaptconf"]["student"]["value"] - cells["kd"]["student"]["value"]
    )
    assert versus["low"] < versus["value"] < versus["high"]
    assert versus["p"] <= versus["p_holm"] <= 3 * versus["p"]


def test_the_best_is_corrected_for_all_pairs(study: Path) -> None:
    (best,), (single,) = (
        make_table(collect(study).runs, reference) for reference in ("best", "adaptconf")
    )
    assert best.reference == "adaptconf"
    assert {loss: cell["verdict"] for loss, cell in cells_of(best).items()} == {
        "adaptconf": "reference",
        "kd": "worse",
        "hard": "worse",
        "gce": "worse",
    }
    ours, theirs = (cells_of(group)["gce"]["versus"] for group in (best, single))
    assert (ours["p_holm"] / ours["p"], theirs["p_holm"] / theirs["p"]) == (
        pytest.approx(6),
        pytest.approx(3),
    )


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (None, ""),
        (dict(seeds=1, p=None, value=30.0), "one seed"),
        (dict(seeds=3, p_holm=0.05, value=3.0), "tie"),
        (dict(seeds=3, p_holm=0.049, value=3.0), "better"),
        (dict(seeds=3, p_holm=0.049, value=-3.0), "worse"),
    ],
)
def test_a_tie_is_no_win(outcome: dict | None, expected: str) -> None:
    assert verdict(outcome) == expected


def test_one_seed_has_the_figures_of_a_protocol(tmp_path: Path) -> None:
    """Its intervals are over test samples, and nothing is called better."""
    for loss, accuracy in ACCURACIES.items():
        write_run(tmp_path, loss, 5, accuracy)
    found = collect(tmp_path)
    (group,) = make_table(found.runs)
    assert {row.verdict for row in group.rows} == {"reference", "one seed"}
    (run,) = runs_of(found, "adaptconf")
    cell = cells_of(group)["adaptconf"]
    for name, figure in figures_of(run.hits).items():
        assert {key: cell[name][key] for key in figure} == figure, name
    accuracy = group.for_people().set_index("loss").loc["adaptconf", "accuracy"]
    assert accuracy == "{value:.2f} [{low:.2f}, {high:.2f}]".format(**cell["student"])


def test_controls(tmp_path: Path) -> None:
    """They are no students of their own; what they say stands in the table."""
    for seed in range(2):
        for loss, accuracy in (("kd", 0.6), ("hard", 0.85)):
            controls = [
                write_run(tmp_path, loss, seed, share, ceiling=None, kind=kind).name
                for kind, share in (("direct", 0.75), ("same-size", 0.5))
            ]
            write_run(tmp_path, loss, seed, accuracy, controls=controls)
    found = collect(tmp_path)
    assert len(found.runs) == 4 and set(found.runs["strong"]) == {"w2s_cnn5"}
    (group,) = make_table(found.runs)
    for loss, cell in cells_of(group).items():
        above = [run.figures["student"] - run.figures["direct"] for run in runs_of(found, loss)]
        assert (
            cell["above direct"]["value"] == pytest.approx(np.mean(above))
            and cell["above direct"]["seeds"] == 2
        )
        assert (
            cell["same-size"]["value"] < cell["direct"]["value"] and "strong-to-strong" not in cell
        )
    assert [row.loss for row in group.rows] == ["hard", "kd"]
    (note,) = (note for note in group.notes if NOT_WORTH in note or NOT_SHOWN in note)
    assert note.startswith(f"hard: {NOT_SHOWN}"), "what holds for both is said of the better one"
    write_table([group], tmp_path)
    rows = {row["loss"]: row for row in csv.DictReader((tmp_path / "table.csv").open())}
    assert float(rows["kd"]["direct_value"]) > 60 > float(rows["hard"]["same-size_value"])


def test_samples_are_drawn_in_pairs(tmp_path: Path) -> None:
    """The interval of a difference is that of both losses on the same samples, as SciPy draws them in pairs."""
    for loss in ("kd", "hard"):
        write_run(tmp_path, loss, 0, 0.7)
    group = make_table(collect(tmp_path).runs)[0]
    hits = [100 * group.runs[loss][0].hits["student"].to_numpy(float) for loss in ("hard", "kd")]
    paired, unpaired = (
        stats.bootstrap(
            hits,
            lambda a, b, axis: a.mean(axis) - b.mean(axis),
            paired=paired,
            method="percentile",
            n_resamples=5000,
            random_state=0,
        ).confidence_interval
        for paired in (True, False)
    )
    versus = cells_of(group)["hard"]["versus"]
    assert (versus["low"], versus["high"]) == pytest.approx(tuple(paired), abs=0.3)
    assert unpaired.high - unpaired.low > 1.5 * (paired.high - paired.low)


def test_seeds_are_paired(tmp_path: Path) -> None:
    """Only seeds that both have are compared."""
    for loss, seeds in (("kd", range(4)), ("adaptconf", (1, 3, 7))):
        for seed in seeds:
            write_run(tmp_path, loss, seed, 0.6 if loss == "kd" else 0.7)
    found = collect(tmp_path)
    (group,) = make_table(found.runs)
    accuracy = {(row.loss, row.seed): row.run.figures["student"] for row in found.runs.itertuples()}
    expected = np.mean([accuracy["adaptconf", seed] - accuracy["kd", seed] for seed in (1, 3)])
    versus = cells_of(group)["adaptconf"]["versus"]
    assert versus["seeds"] == 2 and versus["value"] == pytest.approx(expected)


def test_what_has_one_seed_does_not_count_among_the_comparisons(tmp_path: Path) -> None:
    """Holm's rule is over what was tested: of two losses beside the reference one cannot be."""
    for loss, seeds in (("kd", range(3)), ("adaptconf", range(3)), ("hard", (0,))):
        for seed in seeds:
            write_run(tmp_path, loss, seed, 0.7)
    cells = cells_of(make_table(collect(tmp_path).runs, reference="kd")[0])
    versus = cells["adaptconf"]["versus"]
    assert versus["p_holm"] == pytest.approx(versus["p"]) and cells["hard"]["verdict"] == "one seed"


def test_no_gap_no_ceiling_no_pgr(tmp_path: Path) -> None:
    write_run(tmp_path, "kd", 0, 0.6, weak=0.9, ceiling=0.8)
    write_run(tmp_path, "kd", 1, 0.6)
    write_run(tmp_path, "hard", 5, 0.6, ceiling=None, samples=399)
    (group,) = make_table(collect(tmp_path).runs)
    assert cells_of(group)["kd"]["pgr"]["n"] == 1 and "pgr" not in cells_of(group)["hard"]
    assert "different test samples" in group.notes[0] and "hard: there is no PGR" in " ".join(
        group.notes
    )
    alone = write_run(tmp_path / "above", "kd", 0, 0.8, ceiling=0.7).parents[1]
    assert any("is above the ceiling" in note for note in make_table(collect(alone).runs)[0].notes)


def test_what_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, "kd", 0, 0.6)
    (write_run(tmp_path, "hard", 0, 0.6) / "predictions_last.csv").unlink()
    (write_run(tmp_path, "gce", 0, 0.6) / "result.json").write_text("{")
    (write_run(tmp_path, "sce", 0, 0.6) / "predictions_last.csv").write_text(
        "target,student,teacher\n1,cat,2\n"
    )
    change(write_run(tmp_path, "jsd_kd", 0, 0.6), loss=dict(kwargs={}))
    for loss, data in dict(dkd=None, ncl=[]).items():
        change(write_run(tmp_path, loss, 0, 0.6), data=data)
    for loss, made_of in dict(crd=[None], rkd=[dict(place=[1])]).items():
        change(write_run(tmp_path, loss, 0, 0.6), made_of=made_of)
    found = collect(tmp_path)
    assert len(found.runs) == 1 and len(found.left_out) == 8
    for reason, times in {"No such file": 1, "cannot be read": 5, "'cat'": 1, "'name'": 1}.items():
        assert sum(reason in text for text in found.left_out) == times, found.left_out
    write_report(tmp_path, tmp_path / "report")
    assert (tmp_path / "report/README.md").read_text().count("\n- ") == 8


def test_runs_of_other_data_are_in_no_table(tmp_path: Path) -> None:
    """Images were deleted between the runs of a study: which, and between which runs."""
    for number, name in enumerate(("kd", "adaptconf")):
        source = dict(
            role="train",
            name="'train'",
            place="a",
            samples=490 - 166 * number,
            fingerprint=f"f{number}",
        )
        change(write_run(tmp_path, name, 0, 0.6, ceiling=None), made_of=[source])
    message = (
        "student-kd-0 and student-adaptconf-1 cannot be compared: 'train' changed between them: 490 samples, "
        "fingerprint f0 for student-kd-0, 324 samples, fingerprint f1 for student-adaptconf-1"
    )
    with pytest.raises(UserError, match=message):
        collect(tmp_path)


def test_runs_of_other_weights_are_in_no_table(tmp_path: Path) -> None:
    """What a run was made of another one is no longer, once that one has been trained again."""
    made = write_run(tmp_path, "kd", 0, 0.6, ceiling=None, kind="direct")
    taught = write_run(tmp_path, "kd", 0, 0.6, ceiling=None)
    change(made, export={"model.safetensors": "f0"})
    teacher = to_plain(made_of_run(made, json.loads((made / "result.json").read_text())))
    change(taught, made_of=[{**teacher[0], "role": "teacher 0"}])
    collect(tmp_path)
    change(made, export={"model.safetensors": "f1"})
    message = refusal(collect, tmp_path)
    assert (
        f"the weights of {made.name} changed between them: fingerprint f1 for {made.name}, fingerprint f0"
        in message
    )
    assert f"delete the run folder of {taught.name} and train it again" in message


def test_planned_study_over_data_sets(tmp_path: Path) -> None:
    """Labels are the plan's, the ceiling is the one that a student needs, unfinished students are counted."""
    for name, ceiling in (("cats", 0.9), ("dogs", 0.8), ("fish", 0.3)):
        for seed in range(4):
            for loss, accuracy in (("kd", 0.6), ("hard", 0.605 if name == "cats" else 0.75)):
                labels = dict(
                    set=name, weak="small", strong="big", loss=f"=1+{loss}", protocol="w2s"
                )
                write_run(tmp_path, loss, seed, accuracy, ceiling=ceiling, labels=labels)
    unfinished = StudyRun("kd9", "student", "small", "big", "=1+kd", "w2s", 9, [], set="cats")
    (tmp_path / "waiting").mkdir()
    save_plan(tmp_path / "waiting", [unfinished])
    with pytest.raises(
        UserError, match="no finished student in it; 1 of 1 students are not finished, such as kd9"
    ):
        collect(tmp_path / "waiting")
    save_plan(tmp_path, [*load_plan(tmp_path), unfinished])
    found = collect(tmp_path)
    assert found.left_out == ["1 of 25 students are not finished, such as kd9"]
    groups = make_table(found.runs, "kd")
    assert [group.title for group in groups] == [
        f"{name}: small → big, w2s" for name in ("cats", "dogs", "fish")
    ]
    assert {group.reference for group in groups} == {"=1+kd"}, "by its name in the registry as well"
    assert [cells_of(group)["=1+hard"]["verdict"] for group in groups] == [
        "tie",
        "better",
        "better",
    ]
    write_report(tmp_path, tmp_path / "report", "kd")
    drawn = {path.stem for path in (tmp_path / "report/figures").glob("*.svg")}
    assert drawn == {"pgr-1", "pgr-2"}, "two sets have a PGR"
    rows = list(csv.DictReader((tmp_path / "report/table.csv").open()))
    assert [row["set"] for row in rows] == ["cats"] * 2 + ["dogs"] * 2 + ["fish"] * 2
    assert {row["loss"] for row in rows} == {"'=1+kd", "'=1+hard"}, "no name is a formula"


def test_command_line(study: Path, tmp_path: Path, cli: Cli) -> None:
    """The report prints its table, of eight columns; the CSV has all figures."""
    code, out, err = cli("report", study, "--output", tmp_path / "t", "--reference gce")
    assert code == 0, err
    assert "| `adaptconf` | 4 |" in out and out.rstrip().endswith(str(tmp_path / "t/index.html"))
    assert "| loss | seeds | accuracy | agreement | PGR | difference | p (Holm) | verdict |" in out
    rows = list(csv.DictReader((tmp_path / "t/table.csv").open()))
    assert [row["loss"] for row in rows] == [
        row.loss for row in make_table(collect(study).runs, "gce")[0].rows
    ]
    assert {row["reference"] for row in rows} == {"gce"} and float(rows[0]["student_value"]) > 70


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("STUDY --reference adaptcnf", "no run of it (nearest: adaptconf"),
        ("STUDY --output /dev/null/x", "/dev/null/x: cannot be written"),
        ("STUDYx", "(nearest: "),
        ("EMPTY", "no folder of a study"),
    ],
)
def test_refused(study: Path, tmp_path: Path, cli: Cli, words: str, message: str) -> None:
    code, _, err = cli(
        "report", *words.replace("STUDY", str(study)).replace("EMPTY", str(tmp_path)).split()
    )
    assert code == 2 and message in err and len(err.splitlines()) == 1
