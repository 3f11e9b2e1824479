"""The experiments: rows that are kept, tables that are made from them, rules that move a price."""

import json

import constraints
import harness
import pytest
import tables


def test_the_tables_of_the_pages_are_those_of_the_rows():
    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert tables.with_tables(text) == text, "make tables"


def test_every_row_belongs_to_a_job_and_every_job_has_a_name_of_its_own():
    names = [job.name for job in constraints.jobs()]
    assert len(set(names)) == len(names)
    rows = harness.read("constraints")
    assert rows and set(rows) <= set(names)
    assert all({"seed", "commit", "machine", "seconds"} <= set(row) for row in rows.values())


def made(seed, value):
    return {"value": value + seed}


def test_jobs_that_have_a_row_are_not_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "ROWS", tmp_path)
    jobs = [harness.Job(f"job {i}", made, 1, {"value": i}) for i in range(2)]
    (tmp_path / "question.jsonl").write_text(json.dumps({"job": "job 0", "value": 9}) + "\n")
    harness.run("question", jobs, threads=1)
    rows = harness.read("question")
    assert (rows["job 0"]["value"], rows["job 1"]["value"], rows["job 1"]["seed"]) == (9, 2, 1)
    assert rows["job 1"]["seconds"] >= 0 and "torch" in rows["job 1"]["machine"]


@pytest.mark.parametrize("rule", constraints.RULES.values())
def test_a_rule_raises_the_price_above_the_bound_and_lowers_it_below(rule):
    high, low = rule(10.0, 0.01), rule(10.0, 0.01)
    for _ in range(20):
        high.ascend(11.0)
        low.ascend(9.0)
    assert high.value > 1.05 and 0 <= low.value < 0.95
    for _ in range(20_000):
        high.ascend(1000.0)
    assert high.value == pytest.approx(constraints.CAP)
    for _ in range(200):
        high.ascend(0.0)
    assert high.value < 0.9999 * constraints.CAP  # it answers soon: nothing has wound up
