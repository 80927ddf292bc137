"""The report of kept results: complete, self-contained, well-formed, and alive in a browser."""

import json
import re
import shutil
import subprocess
import sys
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mingcore.testing.machine import describe

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"
KEPT = BENCH / "results" / "amd-epyc-2-cores-avx512-vnni-bf16"
VOID = {"meta", "link", "input", "line", "rect", "circle", "polygon"}
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def report():
    """bench/report.py, imported anew."""
    before = set(sys.modules)
    import report

    yield report
    for name in set(sys.modules) - before:
        if str(BENCH) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


class Page(HTMLParser):
    """Fails on a tag that is not closed in order; gathers ids, links, tables and text."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.ids, self.links, self.tables = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [v for k, v in attributes if k in ("href", "src", "xlink:href", "srcset")]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append(0)
        if tag in ("td", "th"):
            self.tables[-1][-1] += 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_kept_results_make_a_whole_page_that_needs_nothing_else(report, tmp_path, capsys):
    assert report.main([str(KEPT), "--out", str(tmp_path)]) == 0
    assert "rows of" in capsys.readouterr().out
    content = json.loads((tmp_path / "results.json").read_text())
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert all(link.startswith(("#", "data:")) for link in page.links), page.links
    assert not re.search(r"https?://|@import|url\(", text) and "default-src 'none'" in text
    assert 'name="viewport"' in text and len(text) < 1 << 20
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    for lengths in page.tables:
        assert len(set(lengths)) == 1 and len(lengths) > 1
    for row in content["rows"]:
        assert f'<td class="w">{escape(row["case"])}</td>' in text
    for result in content["end_to_end"]:
        assert f"{result['ours']['patch_ms']['median']:.0f} ms" in text
    assert "GPU: not measured in this report" in text
    assert {row["section"] for row in content["rows"]} == set(report.report_rows.SECTIONS.values())
    kinds = {source["kind"] for source in content["sources"]}
    assert set(report.PARTS) <= kinds, "the committed report is complete"
    assert [result["relative_l2"] for result in content["formats"]] and 'id="t-formats"' in text
    assert any(row["op"] == "moe_mlp" and row["best"] == "grouped_mm" for row in content["rows"])
    made = {path.name for path in tmp_path.iterdir()}
    pictures = {"roofline.png", "roofline.svg"} if report.report_plot.available() else set()
    assert made == {"results.json", "report.html"} | pictures


def test_shares_are_those_of_the_measured_ceilings(report):
    ceilings = {"cpu": {"threads": 2, "read_gbs": 50.0, "copy_gbs": 40.0, "gemm_tflops": {"fp32": 0.2}}}
    machine = {**describe(), "commit": "c"}

    def row(us, nbytes, flops, **other):
        return {
            "op": "linear",
            "case": f"c{us}",
            "dtype": "fp32",
            "device": "cpu",
            "backend": "cpu",
            "cache": "cold",
            "us": us,
            "us_p10": us,
            "us_p90": us,
            "nbytes": nbytes,
            "flops": flops,
            "speedup": 2.0,
            "speedup_p10": 1.0,
            "speedup_p90": 3.0,
            "best": "F.linear",
            "others_us": {},
            "others_x": {},
            **other,
        }

    rows = [row(10.0, 400_000, 1000), row(20.0, 4000, 3_000_000), row(5.0, 4000, 0)]
    gemms = {"fp32": {"ours": {"best": 0.3}, "torch.mm": {"best": 0.25}}}
    found = {
        "ops-mid": {"kind": "ops", "machine": machine, "ceilings": ceilings, "rows": rows},
        "ceilings-cpu": {"kind": "ceilings", "machine": machine, "ceilings": ceilings, "gemms": gemms},
    }
    content = report.build(found)
    assert content["ceilings"]["gemms"]["fp32"] == {"tflops": 0.3, "way": "ours"}
    first, second, third = content["rows"]
    assert first["gbs"] == pytest.approx(40.0) and first["read_share"] == pytest.approx(0.8)
    assert (first["share"], first["bound"]) == (first["read_share"], "bytes")
    assert second["tflops"] == pytest.approx(0.15) and second["bound"] == "operations"
    assert second["share"] == second["gemm_share"] == pytest.approx(0.5)
    assert third["tflops"] is None and third["bound"] == "bytes"
    assert "the flow sampler: not measured" in content["missing"]
    assert "target “moe_mlp T=1, share of read”: not measured" in content["missing"]
    assert "Not measured: <code>" in report.report_html.page(content)


def test_nothing_kept_is_one_line(report, tmp_path):
    with pytest.raises(SystemExit, match="report: no kept results in"):
        report.main([str(tmp_path)])


TRY = """
const said = {}, table = document.getElementById("t-experts"), body = table.tBodies[0];
const us = () => Array.from(body.rows).map(row => Number(row.cells[4].dataset.v));
const limit = () => Array.from(body.rows).map(row => row.cells[14].textContent);
const buttons = table.tHead.querySelectorAll("button");
said.before = us();
buttons[4].click(); said.up = us();
said.aria = table.tHead.rows[0].cells[4].getAttribute("aria-sort");
buttons[4].click(); said.down = us();
buttons[14].click(); said.words = limit();
const input = document.querySelector("input[data-table=t-experts]");
input.value = "int8 t1 zipf"; input.dispatchEvent(new Event("input"));
said.left = Array.from(body.rows).filter(row => !row.hidden).map(row => row.textContent);
said.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
const charts = Array.from(document.querySelectorAll("svg.chart"));
said.charts = charts.map(chart => chart.getBoundingClientRect().height);
const out = document.createElement("pre");
out.id = "said"; out.textContent = JSON.stringify(said);
document.body.appendChild(out);
"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
@pytest.mark.parametrize("width", [500, 1300])
def test_in_a_headless_browser(report, tmp_path, width):
    text = report.report_html.page(report.build(report.load(KEPT)))
    path = tmp_path / "report.html"
    path.write_text(text.replace("</body>", f"<script>{TRY}</script></body>"), encoding="utf-8")
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    quiet += " --disable-background-networking --disable-component-update"
    done = subprocess.run(
        [
            BROWSER,
            *quiet.split(),
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},900",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=200,
    )
    found = re.search(r'<pre id="said">(.*?)</pre>', done.stdout)
    assert found, done.stderr[-2000:]
    said = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert said["up"] == sorted(said["before"]) and said["aria"] == "ascending"
    assert said["down"] == said["up"][::-1] and said["before"] != said["up"]
    assert len(set(said["words"])) > 1 and said["words"] == sorted(said["words"], key=str.lower)
    assert said["left"] and all("zipf_t1" in row and "int8" in row for row in said["left"])
    assert said["wide"] <= 0, "the page is wider than the window"
    assert len(said["charts"]) >= 3 and min(said["charts"]) > 100
