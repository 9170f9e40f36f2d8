"""The table of many runs: cells, comparisons, verdicts, files, what is left out."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from w2s_plugins.study.collect import collect
from w2s_plugins.study.layout import PlannedRun, save_plan
from w2s_plugins.study.outcome import intervals
from w2s_plugins.study.report import summary, write_report
from w2s_plugins.study.table import make_table, to_csv, to_markdown, verdict

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


def cells_of(table: dict, group: int = 0) -> dict[str, dict]:
    return {cell["loss"]: cell for cell in table["groups"][group]["cells"]}


def test_figures(study: Path) -> None:
    found = collect(study)
    table = make_table(found)
    assert len(table["groups"]) == 1
    assert table["groups"][0]["protocol"] == "", "workers differ from run to run, which makes no other protocol"
    cells = cells_of(table)
    assert list(cells) == ["adaptconf", "hard", "kd", "gce"] or list(cells) == ["adaptconf", "kd", "hard", "gce"]
    for loss, cell in cells.items():
        runs = [s for s in found.students if s.loss == loss]
        assert cell["seeds"] == [0, 1, 2, 3]
        assert cell["student"]["mean"] == pytest.approx(np.mean([100 * (r.student == r.target).mean() for r in runs]))
        pgr = [(r.figures["student"] - r.figures["weak"]) / (r.figures["ceiling"] - r.figures["weak"]) for r in runs]
        assert cell["pgr"]["mean"] == pytest.approx(np.mean(pgr)), "by seed, then the mean"
        assert cell["pgr"]["sd"] == pytest.approx(np.std(pgr, ddof=1))


def test_verdicts(study: Path) -> None:
    cells = cells_of(make_table(collect(study)))
    assert {loss: cell["verdict"] for loss, cell in cells.items()} == {
        "kd": "reference", "adaptconf": "better", "hard": "tie", "gce": "worse"}
    versus = cells["adaptconf"]["versus"]
    assert versus["difference"] == pytest.approx(cells["adaptconf"]["student"]["mean"] - cells["kd"]["student"]["mean"])
    assert versus["low"] < versus["difference"] < versus["high"]
    assert versus["p"] <= versus["p_holm"] <= 3 * versus["p"]
    assert [t["p"] < 0.05 for t in versus["mcnemar"]] == [True] * 4


def test_the_best_is_corrected_for_all_pairs(study: Path) -> None:
    table = make_table(collect(study), "best")
    group = table["groups"][0]
    assert group["reference"] == "adaptconf" and group["comparisons"] == 6
    assert cells_of(table)["adaptconf"]["verdict"] == "reference"
    assert all(cell["verdict"] == "worse" for loss, cell in cells_of(table).items() if loss != "adaptconf")
    single = cells_of(make_table(collect(study), "adaptconf"))["kd"]["versus"]
    assert cells_of(table)["kd"]["versus"]["p_holm"] >= single["p_holm"]


@pytest.mark.parametrize(("outcome", "expected"), [
    (None, None),
    (dict(seeds=1, p=None, difference=30.0), "one seed"),
    (dict(seeds=3, p_holm=0.05, difference=3.0), "tie"),
    (dict(seeds=3, p_holm=0.049, difference=3.0), "better"),
    (dict(seeds=3, p_holm=0.049, difference=-3.0), "worse"),
])
def test_a_tie_is_no_win(outcome: dict | None, expected: str | None) -> None:
    assert verdict(outcome) == expected


def test_one_seed(tmp_path: Path) -> None:
    """Its interval is that over test samples which a protocol run reports, and nothing is called better."""
    for loss, accuracy in ACCURACIES.items():
        write_run(tmp_path, loss, 5, accuracy)
    found = collect(tmp_path)
    table = make_table(found)
    cells = cells_of(table)
    assert {cell["verdict"] for cell in cells.values()} == {"reference", "one seed"}
    student = next(s for s in found.students if s.loss == "adaptconf")
    theirs = intervals(*(student.hits[name] for name in ("weak", "student", "ceiling", "agreement")))
    for name, tolerance in (("student", 0.5), ("agreement", 0.5), ("pgr", 0.02)):
        cell = cells["adaptconf"][name]
        assert (cell["low"], cell["high"]) == pytest.approx((theirs[name]["low"], theirs[name]["high"]), abs=tolerance)
        assert cell["over"] == "test samples" and cell["sd"] is None
    text = to_markdown(table)
    assert "]†" in text and "better |" not in text
    assert cells["adaptconf"]["versus"]["mcnemar"][0]["p"] < 0.05


def test_controls(tmp_path: Path) -> None:
    """Runs beside the student of a protocol are no students of their own, and what they say stands in the table."""
    for seed in range(2):
        for loss, accuracy in (("kd", 0.6), ("hard", 0.85)):
            student = write_run(tmp_path, loss, seed, accuracy)
            for name, share in (("direct", 0.75), ("same-size", 0.5)):
                other = write_run(tmp_path / name, loss, seed, share).rename(student.with_name(name))
                record = json.loads((other / "result.json").read_text())
                record["teacher"] = record["teacher"] if name == "same-size" else None
                (other / "result.json").write_text(json.dumps(record))
            record = json.loads((student / "result.json").read_text())
            record |= dict(teacher=dict(record["teacher"], loss=1.5), metrics=dict(loss=1.2, misfit=0.4),
                           gain=dict(passes_teacher=1, copies_again=None, by_epoch=[]))
            (student / "result.json").write_text(json.dumps(record))
    found = collect(tmp_path)
    assert len(found.students) == 4 and {s.labels["strong"] for s in found.students} == {"w2s_cnn5"}
    table = make_table(found)
    cells = cells_of(table)
    for cell in cells.values():
        above = np.mean([s.figures["student"] - s.figures["direct"] for s in found.students if s.loss == cell["loss"]])
        assert cell["above_direct"]["mean"] == pytest.approx(above)
        assert cell["same-size"]["mean"] < cell["direct"]["mean"] and cell["strong-to-strong"] is None
        assert (cell["misfit"]["mean"], cell["gain"]["mean"]) == pytest.approx((0.4, 0.3))
        assert cell["passes_teacher"]["mean"] == 2 and cell["copies_again"] is None
    two, *said = table["groups"][0]["warnings"]
    assert two.startswith("Two seeds seldom decide")
    assert said[0].startswith("Weak-to-strong was not worth doing with 1 of 2 losses")
    assert said[1].startswith("It is not shown that weak-to-strong was worth doing with 1 of 2 losses"), "of two seeds"
    assert cells["hard"]["above_direct"]["low"] < 0 and cells["hard"]["above_direct"]["mean"] > 9
    text = to_markdown(table)
    assert f"direct {cells['hard']['direct']['mean']:.2f}" in text, "the heading has it, all else is in the CSV"
    assert all(warning in text and warning in "".join(summary(table)[1]) for warning in (two, *said))
    rows = {row["loss"]: row for row in csv.DictReader(io.StringIO(to_csv(table)))}
    assert float(rows["kd"]["direct_mean"]) > 60 and float(rows["hard"]["same-size_mean"]) < 60
    assert float(rows["kd"]["gain_mean"]) == pytest.approx(0.3) and float(rows["kd"]["passes_teacher_mean"]) == 2


def test_further_test_sets_are_groups_of_their_own(tmp_path: Path) -> None:
    """With the predictions on them, and nothing of what was measured on the validation split."""
    for seed in range(2):
        student = write_run(tmp_path, "kd", seed, 0.6, ceiling_acc=80.0)
        lines = (student / "predictions_last.csv").read_text().splitlines()
        for folder in (student, student.with_name("ceiling")):
            rows = (folder / "predictions_last.csv").read_text().splitlines()[:101]
            (folder / "predictions_on_sketch.csv").write_text("\n".join(rows) + "\n")
        record = json.loads((student / "result.json").read_text())
        record |= dict(test_sets={"sketch": {}}, metrics=dict(loss=1.0, misfit=0.5), teacher=dict(name="t", loss=1.5))
        (student / "result.json").write_text(json.dumps(record))
    table = make_table(collect(tmp_path))
    whole, sketch = table["groups"]
    assert (whole["protocol"], sketch["protocol"]) == ("", "on sketch") and len(lines) == 401
    assert (whole["samples"], sketch["samples"]) == (400, 100)
    assert whole["cells"][0]["gain"]["mean"] == pytest.approx(0.5) and sketch["cells"][0]["gain"] is None
    first = [line.split(",") for line in lines[1:101]]
    assert sketch["cells"][0]["student"]["values"][1] == pytest.approx(sum(row[0] == row[1] for row in first))
    assert sketch["cells"][0]["pgr"]["n"] == 2
    assert summary(table)[0][0].startswith("Finished students: 2; losses: 1; groups: 2.")


def test_seeds_are_paired(tmp_path: Path) -> None:
    """Only seeds that both have are compared."""
    for seed in range(4):
        write_run(tmp_path, "kd", seed, 0.6)
    for seed in (1, 3, 7):
        write_run(tmp_path, "adaptconf", seed, 0.7)
    found = collect(tmp_path)
    versus = cells_of(make_table(found))["adaptconf"]["versus"]
    accuracy = {(s.loss, s.seed): s.figures["student"] for s in found.students}
    assert versus["seeds"] == 2
    expected = np.mean([accuracy["adaptconf", seed] - accuracy["kd", seed] for seed in (1, 3)])
    assert versus["difference"] == pytest.approx(expected)


def test_groups_by_flags_that_differ(tmp_path: Path) -> None:
    for seed in range(2):
        for epochs in (5, 10):
            write_run(tmp_path / str(epochs), "kd", seed, 0.6, epochs=epochs, lr=0.1)
        write_run(tmp_path / "5", "augconf", seed, 0.6, kwargs={"alpha": 0.5}, epochs=5, lr=0.1)
    groups = {g["protocol"]: [c["loss"] for c in g["cells"]] for g in make_table(collect(tmp_path))["groups"]}
    assert groups.keys() == {"epochs=5", "epochs=10"}
    assert sorted(groups["epochs=5"]) == ["augconf(alpha=0.5)", "kd"]


def test_runs_of_an_earlier_version_are_not_set_apart(tmp_path: Path) -> None:
    write_run(tmp_path, "kd", 0, 0.6)
    write_run(tmp_path, "kd", 1, 0.6, long_tail_thresholds=[20, 100], linear_probe=False)
    assert [g["protocol"] for g in make_table(collect(tmp_path))["groups"]] == [""]
    write_run(tmp_path, "kd", 2, 0.6, long_tail_thresholds=[5, 100])
    assert len(make_table(collect(tmp_path))["groups"]) == 2


def test_the_ceiling_of_a_protocol_run_is_the_one_beside_it(tmp_path: Path) -> None:
    """Also where it saw other samples: the student's may be selected ones. Elsewhere the samples decide."""
    student = write_run(tmp_path, "kd", 0, 0.6)
    result = student.parent / "ceiling/result.json"
    result.write_text(result.read_text().replace('"f"', '"g"'))
    assert collect(tmp_path).students[0].others.keys() == {"ceiling"}
    student.rename(student.with_name("kd"))
    assert collect(tmp_path).students[0].others == {}


def test_seeds_of_slices_that_follow_the_seed(tmp_path: Path) -> None:
    """They are part of the seed; where they vary by themselves they make another protocol."""
    for seed in range(2):
        write_run(tmp_path, "kd", seed, 0.6, slice_seed=seed, noise_seed=0, ceiling_checkpoint=f"c{seed}")
    assert [g["protocol"] for g in make_table(collect(tmp_path))["groups"]] == [""]
    write_run(tmp_path / "more", "kd", 1, 0.6, slice_seed=2, noise_seed=0)
    assert [g["protocol"] for g in make_table(collect(tmp_path))["groups"]] == [f"slice_seed={s}" for s in range(3)]


def test_no_gap_no_pgr(tmp_path: Path) -> None:
    write_run(tmp_path, "kd", 0, 0.6, weak=0.9, ceiling=0.8)
    write_run(tmp_path, "kd", 1, 0.6)
    write_run(tmp_path, "hard", 5, 0.6, ceiling=None, samples=399)
    table = make_table(collect(tmp_path))
    assert cells_of(table)["kd"]["pgr"]["n"] == 1 and "(1 of 2 seeds)" in to_markdown(table)
    assert cells_of(table)["hard"]["pgr"] is None
    assert "different test samples" in table["groups"][0]["note"]


def test_what_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, "kd", 0, 0.6)
    write_run(tmp_path / "again", "kd", 0, 0.6)
    (write_run(tmp_path, "hard", 0, 0.6) / "predictions_last.csv").unlink()
    (write_run(tmp_path, "gce", 0, 0.6) / "result.json").write_text("{")
    (write_run(tmp_path, "sce", 0, 0.6) / "predictions_last.csv").write_text("target,student,teacher\n1,cat,2\n")
    damaged = write_run(tmp_path, "jsd_kd", 0, 0.6) / "result.json"
    damaged.write_text(damaged.read_text().replace('"kwargs"', '"args"'))
    found = collect(tmp_path)
    assert len(found.students) == 1 and len(found.left_out) == 5
    for reason in ("same settings and seed", "no such file", "cannot be read", "'cat'", "'kwargs'"):
        assert sum(reason in text for text in found.left_out) == 1
    assert to_markdown(make_table(found)).count("\n- ") == 5


def test_planned_study(tmp_path: Path) -> None:
    """Labels are the plan's, the ceiling is the one that the student needs, and unfinished students are counted."""
    plan = []
    for seed in range(2):
        ceiling = write_run(tmp_path / "other", "ceiling", seed, 0.9).parent / "ceiling"
        ceiling.parent.rename(tmp_path / f"other/{seed}")
        (tmp_path / "runs").mkdir(exist_ok=True)
        (tmp_path / f"other/{seed}/ceiling").rename(tmp_path / f"runs/top{seed}")
        student = write_run(tmp_path / "other", "kd", seed, 0.6, ceiling=None)
        student.rename(tmp_path / f"runs/kd{seed}")
        top = PlannedRun(f"top{seed}", "ceiling", None, "big", None, None, seed, [])
        kd = PlannedRun(f"kd{seed}", "student", "small", "big", "soft", "blind", seed, [], [top.id])
        plan += [top, kd]
    plan.append(PlannedRun("kd9", "student", "small", "big", "soft", "blind", 9, [], []))
    save_plan(tmp_path, plan)
    found = collect(tmp_path)
    assert [s.labels for s in found.students] == [dict(weak="small", strong="big", protocol="blind", loss="soft")] * 2
    assert found.left_out == ["1 of 3 students are not finished: kd9"]
    assert all(s.figures["ceiling"] > 80 for s in found.students)
    assert make_table(found, "kd")["groups"][0]["reference"] == "soft", "by its name in the registry as well"


def test_data_sets(tmp_path: Path) -> None:
    """Groups of each; over them the mean PGR, seed by seed, without the set that has none, and the verdicts."""
    plan = []
    (tmp_path / "runs").mkdir()
    for name, ceiling in (("cats", 0.9), ("dogs", 0.8), ("fish", 0.3)):
        for seed in range(4):
            for loss, accuracy in (("kd", 0.6), ("hard", 0.605 if name == "cats" else 0.75)):
                student = write_run(tmp_path / name, loss, seed, accuracy, ceiling=ceiling)
                top, run = (f"{kind}-{name}-{loss}-{seed}" for kind in ("ceiling", "student"))
                for folder, target in ((student.with_name("ceiling"), top), (student, run)):
                    folder.rename(tmp_path / "runs" / target)
                plan += [PlannedRun(top, "ceiling", None, "big", None, None, seed, [], set=name),
                         PlannedRun(run, "student", "small", "big", loss, "w2s", seed, [], [top], set=name)]
    save_plan(tmp_path, plan)
    found = collect(tmp_path)
    table = make_table(found)
    assert [group["set"] for group in table["groups"]] == ["cats", "dogs", "fish"]
    (mean,) = table["over_sets"]
    assert mean["sets"] == ["cats", "dogs", "fish"] and "set" not in mean and mean["reference"] == "kd"
    hard = mean["cells"][0]
    assert hard["loss"] == "hard" and hard["verdicts"] == {"tie": 1, "better": 2}
    gaps = {run.labels["set"] + str(run.seed): run.figures["pgr"] for run in found.students if run.loss == "hard"}
    expected = [(gaps[f"cats{seed}"] + gaps[f"dogs{seed}"]) / 2 for seed in range(4)]
    assert hard["pgr"]["values"] == pytest.approx(expected) and hard["sets"] == 2
    assert hard["pgr"]["low"] < hard["pgr"]["mean"] == pytest.approx(np.mean(expected))
    write_report(tmp_path, tmp_path / "report")
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert '<h3>small → big, w2s</h3>' in page and '<h3>cats: small → big, w2s</h3>' in page
    drawn = {path.stem for path in (tmp_path / "report" / "figures").glob("*.svg")}
    assert drawn == {f"{name}-{number}" for name in ("pgr", "agreement", "mistakes") for number in (1, 2, 3)}, (
        "the mean and two of three sets have a PGR")
    text = (tmp_path / "report" / "README.md").read_text(encoding="utf-8")
    assert "| loss | sets | PGR | better on | tie on | worse on |" in text
    assert "In the mean are 2 of 3 data sets" in text
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert [row["set"] for row in rows] == ["cats"] * 2 + ["dogs"] * 2 + ["fish"] * 2


def test_command_line(study: Path, tmp_path: Path, cli: Cli) -> None:
    """The report prints its table, of eight columns; CSV and JSON have all figures."""
    code, out, err = cli("report", study, "--output", tmp_path / "t", "--reference", "gce")
    assert code == 0, err
    assert "| `adaptconf` | 4 |" in out and "▲ better" in out and out.rstrip().endswith(str(tmp_path / "t/index.html"))
    assert "| loss | seeds | accuracy | agreement | PGR | difference | p (Holm) | verdict |" in out
    rows = list(csv.DictReader((tmp_path / "t/table.csv").open()))
    record = json.loads((tmp_path / "t/table.json").read_text())
    assert [row["loss"] for row in rows] == [cell["loss"] for cell in record["groups"][0]["cells"]]
    assert float(rows[0]["student_mean"]) == record["groups"][0]["cells"][0]["student"]["mean"]
    assert {row["reference"] for row in rows} == {"gce"} and int(rows[0]["mcnemar_below"]) > 0


def test_names_are_no_formulas(tmp_path: Path) -> None:
    """Of losses and models, as a specification may call them."""
    plan = []
    for seed in range(2):
        (tmp_path / "runs").mkdir(exist_ok=True)
        write_run(tmp_path / "made", "kd", seed, 0.6).rename(tmp_path / "runs" / f"s{seed}")
        plan.append(PlannedRun(f"s{seed}", "student", "@small", "-1+big", "=1+kd", "+blind", seed, [], []))
    save_plan(tmp_path, plan)
    table = make_table(collect(tmp_path))
    row, = csv.DictReader(io.StringIO(to_csv(table)))
    assert [row[key] for key in ("weak", "strong", "protocol", "loss")] == ["'@small", "'-1+big", "'+blind", "'=1+kd"]
    assert float(row["student_mean"]) > 0


@pytest.mark.parametrize(("flags", "message"), [
    (["--reference", "adaptcnf"], "no run of it in .* (nearest: adaptconf"),
    (["--output", "/dev/null/x"], "/dev/null/x: cannot be written"),
])
def test_refused(study: Path, cli: Cli, flags: list[str], message: str) -> None:
    code, _, err = cli("report", study, *flags)
    assert code == 2 and message.split(".*")[-1] in err and len(err.splitlines()) == 1


def test_no_runs(tmp_path: Path, cli: Cli) -> None:
    assert "no finished student in it; expected run folders" in cli("report", tmp_path)[2]
    assert "(nearest: " in cli("report", str(tmp_path) + "x")[2]
