"""Dockerfile and compose file, as far as they can be tried without a Docker daemon: docker/test_images.sh builds them.

usage: images_test.py ULTRASKETCHD [unittest's arguments]
"""

import json
import pathlib
import re
import sys
import tempfile
import unittest

import yaml

import live_prometheus
from live_prometheus import ROOT

DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
VERSION = re.search(r"project\(ultrasketch VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text())[1]

ultrasketchd = None


def stage(name):
    """The lines of one of the Dockerfile's stages, those that go on put together."""
    text = DOCKERFILE.replace("\\\n", "")
    return re.search(rf"^FROM \S+ AS {name}$(.*?)(?=^FROM |\Z)", text, re.MULTILINE | re.DOTALL)[1]


def instruction(name, text):
    """The arguments of an instruction that takes a list."""
    return json.loads(re.search(rf"^{name} (\[.*\])$", text, re.MULTILINE)[1])


def mounts(service):
    """{path in the container: file or folder here}, without named volumes."""
    pairs = [volume.split(":")[:2] for volume in COMPOSE["services"][service]["volumes"]]
    return {inside: (DOCKER / here).resolve() for here, inside in pairs if here.startswith(".")}


class ImagesTest(unittest.TestCase):
    def test_a_device_is_a_base_with_the_programs(self):
        self.assertRegex(DOCKERFILE, re.compile(r"^ARG DEVICE$", re.MULTILINE))
        for device in ("cpu", "cuda"):
            self.assertEqual(stage(f"files-{device}").strip(), f"COPY --from=build-{device} /out /")
        self.assertEqual(re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)[-1],
                         ("files-${DEVICE:-cpu}", "server"))

    def test_images_say_what_they_are(self):
        self.assertIn(f'org.opencontainers.image.version="{VERSION}"', stage("server"))
        user = re.search(r"^USER (\d+):\d+$", stage("server"), re.MULTILINE)
        self.assertGreater(int(user[1]), 0)
        self.assertRegex(stage("server"), r'HEALTHCHECK .* CMD \["ultrasketch", "health", "--target", "127.0.0.1:8001"\]')
        self.assertEqual(COMPOSE["services"]["server"]["image"], f"ultrasketch:{VERSION}-cpu")

    def test_the_server_starts_with_these_arguments(self):
        command = instruction("CMD", stage("server"))
        changed = {"--listen=0.0.0.0:8001": "--listen=127.0.0.1:0",
                   "--metrics-listen=0.0.0.0:8002": "--metrics-listen=127.0.0.1:0",
                   "--model-repository=/models": f"--model-repository={ROOT}/deploy/models"}
        self.assertLessEqual(changed.keys(), set(command))
        with tempfile.TemporaryDirectory() as folder:
            server = live_prometheus.Process([ultrasketchd, *[changed.get(each, each) for each in command]],
                                             pathlib.Path(folder, "log"))
            try:
                server.wait_for("event=serving")
            finally:
                server.stop()

    def test_what_compose_mounts_is_there(self):
        for service in ("prometheus", "grafana"):
            for inside, here in mounts(service).items():
                self.assertTrue(here.exists(), here)
                # Within another read-only mount there must be something to mount over.
                for outer, folder in mounts(service).items():
                    if inside.startswith(outer + "/"):
                        self.assertTrue((folder / inside.removeprefix(outer + "/")).exists(), inside)

    def test_prometheus_finds_the_server(self):
        services = COMPOSE["services"]
        (path,) = [argument.removeprefix("--config.file=") for argument in services["prometheus"]["command"]
                   if argument.startswith("--config.file=")]
        folder, name = path.rsplit("/", 1)
        configuration = yaml.safe_load((mounts("prometheus")[folder] / name).read_text())
        (files,) = configuration["scrape_configs"][0]["file_sd_configs"]
        (group,) = yaml.safe_load(mounts("prometheus")[f"{folder}/{files['files'][0]}"].read_text())
        (target,) = group["targets"]
        service, port = target.split(":")
        self.assertIn(service, services)
        self.assertNotIn("command", services[service])
        self.assertIn(f"--metrics-listen=0.0.0.0:{port}", instruction("CMD", stage("server")))

    def test_grafana_is_provisioned(self):
        environment = COMPOSE["services"]["grafana"]["environment"]
        (source,) = yaml.safe_load((mounts("grafana")["/etc/grafana/provisioning"] /
                                    "datasources/prometheus.yml").read_text())["datasources"]
        self.assertEqual(source["url"], "${PROMETHEUS_URL}")
        self.assertEqual(environment["PROMETHEUS_URL"], "http://prometheus:9090")
        (provider,) = yaml.safe_load((mounts("grafana")["/etc/grafana/provisioning"] /
                                      "dashboards/ultrasketch.yml").read_text())["providers"]
        dashboards = mounts("grafana")[provider["options"]["path"]]
        self.assertEqual(dashboards, live_prometheus.DASHBOARDS)
        home = environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].removeprefix(provider["options"]["path"] + "/")
        self.assertTrue((dashboards / home).exists())


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    ultrasketchd = sys.argv[1]
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]], verbosity=2)
