"""Dashboards, rules and alerts, against a loaded server and a real Prometheus.

usage: observability_test.py ULTRASKETCHD ULTRASKETCH [unittest's arguments]
"""

import html
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

import yaml

import live_prometheus
from live_prometheus import ROOT

MODEL = "sketch"
RULES = sorted((live_prometheus.PROMETHEUS / "rules").glob("*.yml"))
RECORDING = live_prometheus.PROMETHEUS / "rules/recording.yml"
# Longer than the test takes, so that what the load did is in every window.
RATE_WINDOW = "10m"

ultrasketchd = ultrasketch = None


def rules():
    """(file, rule) of every rule."""
    return [(path.name, rule) for path in RULES for group in yaml.safe_load(path.read_text())["groups"]
            for rule in group["rules"]]


def promtool(*arguments):
    result = subprocess.run([live_prometheus.tool("promtool"), *map(str, arguments)], capture_output=True, text=True)
    return result.returncode, result.stdout + result.stderr


class RulesTest(unittest.TestCase):
    def test_promtool_takes_the_configuration(self):
        code, said = promtool("check", "config", live_prometheus.PROMETHEUS / "prometheus.yml")
        self.assertEqual(code, 0, said)
        for path in RULES:
            self.assertIn(str(path), said)

    def test_promtool_takes_the_rules(self):
        code, said = promtool("check", "rules", "--lint=all", "--lint-fatal", *RULES)
        self.assertEqual(code, 0, said)

    def test_alerts_fire_and_do_not_fire(self):
        code, said = promtool("test", "rules", ROOT / "tests/deploy/alerts_test.yml")
        self.assertEqual(code, 0, said)

    def test_each_alert_has_cases(self):
        cases = (ROOT / "tests/deploy/alerts_test.yml").read_text()
        for _, rule in rules():
            if "alert" in rule:
                self.assertGreaterEqual(cases.count(f'expr: ALERTS{{alertname="{rule["alert"]}"'), 2, rule["alert"])

    def test_each_alert_is_documented(self):
        text = (ROOT / "docs/observing.md").read_text()
        headings = {re.sub(r"[^\w-]", "", line.lstrip("# ").lower().replace(" ", "-"))
                    for line in text.splitlines() if line.startswith("#")}
        for _, rule in rules():
            if "alert" not in rule:
                continue
            self.assertIn(rule["labels"]["severity"], ("warning", "critical"))
            self.assertLess({"summary", "description"}, rule["annotations"].keys())
            page, anchor = rule["annotations"]["runbook"].split("#")
            self.assertEqual(page, "docs/observing.md")
            self.assertIn(anchor, headings)


class DashboardsTest(unittest.TestCase):
    def test_files_are_what_the_script_makes(self):
        script = ROOT / "deploy/grafana/make_dashboards.py"
        result = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_ids_are_unique(self):
        boards = live_prometheus.dashboards()
        self.assertEqual(len(boards), 2)
        uids = [board["uid"] for board in boards.values()]
        self.assertEqual(len(set(uids)), len(uids))
        for name, board in boards.items():
            self.assertRegex(board["uid"], r"^[a-z-]{1,40}$")
            ids = [panel["id"] for panel in board["panels"]]
            self.assertEqual(len(set(ids)), len(ids), name)
            titles = [panel["title"] for panel in board["panels"]]
            for row in [panel["title"] for panel in board["panels"] if panel["type"] == "row"]:
                self.assertTrue(row)
            self.assertTrue(all(titles), name)

    def test_panels_say_what_they_show(self):
        for name, board in live_prometheus.dashboards().items():
            for panel in live_prometheus.panels(board):
                where = f"{name}: {panel['title']}"
                self.assertTrue(panel["targets"], where)
                self.assertTrue(panel["description"].endswith("."), where)
                self.assertTrue(panel["fieldConfig"]["defaults"]["unit"], where)
                references = [target["refId"] for target in panel["targets"]]
                self.assertEqual(len(set(references)), len(references), where)

    def test_panels_do_not_overlap(self):
        for name, board in live_prometheus.dashboards().items():
            taken = {}
            for panel in board["panels"]:
                place = panel["gridPos"]
                self.assertLessEqual(place["x"] + place["w"], 24, panel["title"])
                for cell in [(x, y) for x in range(place["x"], place["x"] + place["w"])
                             for y in range(place["y"], place["y"] + place["h"])]:
                    self.assertNotIn(cell, taken, f"{name}: {panel['title']} over {taken.get(cell)}")
                    taken[cell] = panel["title"]

    def test_every_query_goes_to_the_data_source_variable(self):
        for name, board in live_prometheus.dashboards().items():
            variables = {each["name"]: each for each in board["templating"]["list"]}
            self.assertEqual(variables["datasource"]["type"], "datasource")
            self.assertEqual(variables["datasource"]["query"], "prometheus")
            sources = [each["datasource"] for each in variables.values() if each["type"] == "query"]
            for panel in live_prometheus.panels(board):
                sources += [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
            self.assertEqual({json.dumps(source) for source in sources},
                             {'{"type": "prometheus", "uid": "${datasource}"}'}, name)

    def test_every_variable_is_defined_and_used(self):
        for name, board in live_prometheus.dashboards().items():
            used = {match for panel in live_prometheus.panels(board) for target in panel["targets"]
                    for match in re.findall(r"\$(\w+)", target["expr"])}
            defined = {each["name"] for each in board["templating"]["list"]}
            self.assertEqual(used - {"__rate_interval", "__range"}, defined - {"datasource"}, name)

    def test_provisioning_names_the_data_source_and_the_folder(self):
        provisioning = ROOT / "deploy/grafana/provisioning"
        (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
        self.assertEqual(source["type"], "prometheus")
        for board in live_prometheus.dashboards().values():
            (variable,) = [each for each in board["templating"]["list"] if each["type"] == "datasource"]
            self.assertEqual((variable["current"]["value"], variable["current"]["text"]),
                             (source["uid"], source["name"]))
        configuration = yaml.safe_load((live_prometheus.PROMETHEUS / "prometheus.yml").read_text())
        self.assertEqual(source["jsonData"]["timeInterval"], configuration["global"]["scrape_interval"])
        (provider,) = yaml.safe_load((provisioning / "dashboards/ultrasketch.yml").read_text())["providers"]
        self.assertTrue(pathlib.PurePosixPath(provider["options"]["path"]).is_absolute())

    def test_previews_are_of_these_dashboards(self):
        for name, board in live_prometheus.dashboards().items():
            preview = (ROOT / f"docs/dashboard-{name.removesuffix('.json')}.svg").read_text()
            for panel in live_prometheus.panels(board):
                self.assertTrue(f">{html.escape(panel['title'])}<" in preview,
                                f"{name}: {panel['title']} is not in the preview: run docs/plot_dashboards.py")


class LiveTest(unittest.TestCase):
    """What dashboards and rules ask, a Prometheus answers with data."""

    @classmethod
    def setUpClass(cls):
        stack = live_prometheus.serve(
            ultrasketchd, {MODEL: ROOT / "deploy/models/classics-20m-sketch"},
            server_options=["--max-running-sequences", "4", "--max-step-tokens", "64"])
        address, cls.prometheus = cls.enterClassContext(stack)
        good = live_prometheus.Load(ultrasketch, address, MODEL).once()
        live_prometheus.wait_until(
            lambda: cls.prometheus.query(f'sum(ultrasketch_requests_total{{code="OK"}}) == {good}'),
            f"{good} requests in the metrics")

    def assert_all_have_data(self, expressions):
        """`expressions` maps what one is to it. Rules of rules come some evaluations later."""
        waiting = dict(expressions)

        def all_found():
            for what in [what for what, expression in waiting.items() if self.prometheus.query(expression)]:
                del waiting[what]
            return not waiting

        try:
            live_prometheus.wait_until(all_found, "data")
        except TimeoutError:
            self.fail("no data for " + json.dumps(waiting, indent=2))

    def test_every_panel_has_data(self):
        expressions = {}
        for name, board in live_prometheus.dashboards().items():
            variables = self.prometheus.variables(board, rate_interval=RATE_WINDOW, range=RATE_WINDOW)
            self.assertEqual(variables["model"], f"({MODEL})")
            for panel in live_prometheus.panels(board):
                for target in panel["targets"]:
                    what = f"{name}: {panel['title']} {target['refId']}"
                    expressions[what] = live_prometheus.substitute(target["expr"], variables)
        self.assertGreater(len(expressions), 50)
        self.assert_all_have_data(expressions)

    def test_every_legend_names_labels_that_are_there(self):
        for name, board in live_prometheus.dashboards().items():
            variables = self.prometheus.variables(board, rate_interval=RATE_WINDOW, range=RATE_WINDOW)
            for panel in live_prometheus.panels(board):
                for target in panel["targets"]:
                    names = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
                    for labels, _ in self.prometheus.query(live_prometheus.substitute(target["expr"], variables)):
                        self.assertLessEqual(names, labels.keys(), f"{name}: {panel['title']}")

    def test_dashboards_can_be_drawn(self):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, "-B", ROOT / "docs/plot_dashboards.py", "--prometheus",
                            self.prometheus.address, "60", folder], check=True, capture_output=True)
            for name, board in live_prometheus.dashboards().items():
                drawing = pathlib.Path(folder, f"dashboard-{name.removesuffix('.json')}.svg")
                texts = {each.text for each in xml.etree.ElementTree.parse(drawing).iter() if each.tag.endswith("text")}
                self.assertLessEqual({panel["title"] for panel in live_prometheus.panels(board)}, texts)

    def test_every_recording_rule_has_data(self):
        recorded = {rule["record"]: rule["record"] for _, rule in rules() if "record" in rule}
        self.assertTrue(recorded)
        self.assert_all_have_data(recorded)

    def test_every_selector_of_the_alerts_has_data(self):
        """An alert that does not fire gives no data: what it selects must be there all the same."""
        selectors = {}
        for _, rule in rules():
            if "alert" not in rule:
                continue
            found = re.findall(r"\b(?:up|[a-z_:]*(?:ultrasketch|process)_[a-z0-9_:]*)(?:{[^}]*})?", rule["expr"])
            self.assertTrue(found, rule["alert"])
            selectors.update({f"{rule['alert']}: {each}": each for each in found})
        self.assert_all_have_data(selectors)

    def test_every_query_of_the_autoscaler_has_data(self):
        values = yaml.safe_load(
            (ROOT / "deploy/kubernetes/components/autoscaling/prometheus-adapter-values.yaml").read_text())
        expressions = {}
        for rule in values["rules"]["custom"]:
            expression = rule["metricsQuery"]
            # As the adapter does, with the labels that there are without Kubernetes.
            for part, value in [("<<.Series>>", rule["seriesQuery"].partition("{")[0]),
                                ("<<.LabelMatchers>>", 'job="ultrasketch"'), ("<<.GroupBy>>", "instance"),
                                ("[2m]", f"[{RATE_WINDOW}]")]:
                expression = expression.replace(part, value)
            expressions[rule["name"]["as"]] = expression
        self.assert_all_have_data(expressions)

    def test_rules_are_healthy_and_nothing_fires_on_a_healthy_server(self):
        def evaluated():
            return all(rule["health"] != "unknown" for rule in self.rules())

        live_prometheus.wait_until(evaluated, "all rules to be evaluated")
        self.assertEqual(len(self.rules()), len(rules()))
        for rule in self.rules():
            self.assertEqual(rule["health"], "ok", rule.get("lastError"))
            self.assertNotEqual(rule.get("state"), "firing", rule["name"])

    def rules(self):
        return [rule for group in self.prometheus.get("rules")["groups"] for rule in group["rules"]]


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    ultrasketchd, ultrasketch = sys.argv[1:3]
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=2)
