"""Manifests for Kubernetes and KServe: rendered, compared with tests/data/kubernetes, and checked offline; so is the
compose file. Runs with the Python of the tools, which has kubernetes-validate and check-jsonschema.

usage: manifests_test.py KUBECTL ULTRASKETCHD ULTRASKETCH [unittest's arguments]
       manifests_test.py KUBECTL --update     writes what is rendered now into tests/data/kubernetes
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import jsonschema
import kubernetes_validate
import yaml

import live_prometheus
from live_prometheus import ROOT

EXPECTED = ROOT / "tests/data/kubernetes"
KUBERNETES_VERSION = "1.37.0"
RENDERED = {
    "cpu": "kubernetes/overlays/cpu",
    "gpu": "kubernetes/overlays/gpu",
    "replicas": "kubernetes/overlays/replicas",
    "kserve": "kserve",
    "gateway": "gateway",
}
SERVERS = ["cpu", "gpu", "replicas"]

kubectl = ultrasketchd = ultrasketch = None


def render(name):
    """The resources of one overlay. What the gateway needs beside the tree is made in a copy."""
    with tempfile.TemporaryDirectory() as temporary:
        for part in ("deploy", "proto"):
            shutil.copytree(ROOT / part, pathlib.Path(temporary, part), ignore=shutil.ignore_patterns("models"))
        subprocess.run([pathlib.Path(temporary, "deploy/gateway/make_descriptor.sh")], check=True)
        result = subprocess.run([kubectl, "kustomize", pathlib.Path(temporary, "deploy", RENDERED[name])],
                                capture_output=True, text=True)
    if result.returncode != 0 or result.stderr:
        raise RuntimeError(f"{name}: {result.stderr}")
    return list(yaml.safe_load_all(result.stdout))


def without_files(resources):
    """Files in ConfigMaps have tests of their own: here their names count. A name's hash goes with them."""
    hashes = {}
    for resource in resources:
        if resource["kind"] == "ConfigMap":
            name = resource["metadata"]["name"]
            hashes[name] = re.sub(r"-[a-z0-9]{10}$", "", name)
            for data in ("data", "binaryData"):
                for file in resource.get(data, {}):
                    resource[data][file] = "..."
    text = yaml.safe_dump_all(resources, sort_keys=False, width=120)
    for name, plain in hashes.items():
        text = text.replace(name, plain)
    return text


def find(resources, kind):
    (found,) = [each for each in resources if each["kind"] == kind]
    return found


def selects(selector, labels):
    """A non-empty selector of labels that picks what carries `labels`."""
    return bool(selector) and selector.items() <= labels.items()


def validate(resource):
    """Raises when a resource has a field that its kind does not know, or lacks one that it needs."""
    kind = resource["kind"]
    custom = yaml.safe_load((EXPECTED / "custom_resources.yaml").read_text())
    if kind not in custom:
        kubernetes_validate.validate(resource, KUBERNETES_VERSION, strict=True)
        return
    schema = custom[kind]
    jsonschema.validate(resource, {
        "type": "object", "additionalProperties": False, "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {"apiVersion": {"const": schema["apiVersion"]}, "kind": {"const": kind},
                       "metadata": {"type": "object"}, "spec": schema["spec"]}})
    if "containers" in resource["spec"]:
        validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"},
                  "spec": {"containers": resource["spec"]["containers"]}})


def containers(resources):
    """(pod's specification, container) of all workloads of ours."""
    for resource in resources:
        if resource["kind"] == "Deployment":
            pod = resource["spec"]["template"]["spec"]
        elif resource["kind"] == "ServingRuntime":
            pod = resource["spec"]
        else:
            continue
        for container in pod["containers"]:
            yield pod, container


def seconds_of(container, flag):
    (value,) = [argument.removeprefix(f"--{flag}=") for argument in container["args"]
                if argument.startswith(f"--{flag}=")]
    return float(value)


def number_of_bytes(quantity):
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()
    return int(number) * {"Mi": 2**20, "Gi": 2**30}[unit]


class ManifestsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.resources = {name: render(name) for name in RENDERED}

    def test_rendered_is_what_the_tree_has(self):
        for name in RENDERED:
            with self.subTest(name):
                self.assertEqual(without_files(render(name)), (EXPECTED / f"{name}.yaml").read_text(),
                                 "manifests_test.py KUBECTL --update writes the files anew")

    def test_every_resource_is_valid(self):
        for name, resources in self.resources.items():
            for resource in resources:
                with self.subTest(f"{name}: {resource['kind']} {resource['metadata']['name']}"):
                    validate(resource)

    def test_unknown_fields_and_kinds_are_refused(self):
        deployment = json.loads(json.dumps(find(self.resources["cpu"], "Deployment")))
        deployment["spec"]["template"]["spec"]["containers"][0]["readinessProb"] = {}
        with self.assertRaises(kubernetes_validate.ValidationError):
            validate(deployment)
        monitor = json.loads(json.dumps(find(self.resources["replicas"], "ServiceMonitor")))
        monitor["spec"]["endpoints"][0]["intervall"] = "10s"
        with self.assertRaises(jsonschema.ValidationError):
            validate(monitor)
        runtime = json.loads(json.dumps(find(self.resources["kserve"], "ServingRuntime")))
        runtime["spec"]["containers"][0]["prots"] = []
        with self.assertRaises(kubernetes_validate.ValidationError):
            validate(runtime)
        with self.assertRaises(kubernetes_validate.SchemaNotFoundError):
            validate({"apiVersion": "v1", "kind": "Nonsense", "metadata": {"name": "a"}})

    def test_selectors_find_the_servers_and_nothing_else(self):
        for name in SERVERS:
            resources = self.resources[name]
            deployment = find(resources, "Deployment")
            labels = deployment["spec"]["template"]["metadata"]["labels"]
            selectors = [deployment["spec"]["selector"]["matchLabels"],
                         find(resources, "Service")["spec"]["selector"],
                         find(resources, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
                         find(resources, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]]
            for selector in selectors:
                self.assertTrue(selects(selector, labels), f"{name}: {selector}")
            (client,) = find(resources, "NetworkPolicy")["spec"]["ingress"][0]["from"]
            gateway = find(self.resources["gateway"], "Deployment")["spec"]["template"]["metadata"]["labels"]
            self.assertTrue(selects(client["podSelector"]["matchLabels"], gateway))
        monitor = find(self.resources["replicas"], "ServiceMonitor")
        service = find(self.resources["replicas"], "Service")
        self.assertTrue(selects(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"]))
        (endpoint,) = monitor["spec"]["endpoints"]
        self.assertIn(endpoint["port"], [port["name"] for port in service["spec"]["ports"]])
        # Prometheus takes the Service's name for the job's, by which alerts find the servers.
        self.assertIn("ultrasketch", service["metadata"]["name"])

    def test_ports_and_probes_are_the_servers(self):
        for name in SERVERS + ["kserve"]:
            for _, container in containers(self.resources[name]):
                ports = {port["containerPort"] for port in container["ports"]}
                listens = {int(argument.rpartition(":")[2]) for argument in container["args"]
                           if re.match(r"--(metrics-)?listen=", argument)}
                self.assertLessEqual(ports, listens)
                for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                    self.assertEqual(container[probe]["grpc"]["port"], 8001, f"{name}: {probe}")
        for name in SERVERS:
            named = {port["name"] for _, container in containers(self.resources[name]) for port in container["ports"]}
            self.assertEqual({port["targetPort"] for port in find(self.resources[name], "Service")["spec"]["ports"]},
                             named)
            self.assertEqual(find(self.resources[name], "Service")["spec"]["clusterIP"], "None")

    def test_pods_have_the_time_to_drain(self):
        kserve = find(self.resources["kserve"], "InferenceService")["spec"]["predictor"]
        for name in SERVERS + ["kserve"]:
            for pod, container in containers(self.resources[name]):
                grace = pod.get("terminationGracePeriodSeconds", kserve["terminationGracePeriodSeconds"])
                sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
                self.assertGreaterEqual(sleep, 5)
                self.assertGreaterEqual(grace, sleep + seconds_of(container, "drain-seconds") + 5, name)

    def test_pods_keep_to_the_restricted_profile(self):
        for name, resources in self.resources.items():
            for pod, container in containers(resources):
                context = {**pod.get("securityContext", {}), **container["securityContext"]}
                self.assertTrue(context["runAsNonRoot"], name)
                self.assertGreater(context["runAsUser"], 0)
                self.assertFalse(context["allowPrivilegeEscalation"])
                self.assertTrue(context["readOnlyRootFilesystem"])
                self.assertEqual(context["capabilities"], {"drop": ["ALL"]})
                self.assertEqual(context["seccompProfile"], {"type": "RuntimeDefault"})
                for volume in pod.get("volumes", []):
                    self.assertTrue(volume.keys() & {"configMap", "secret", "persistentVolumeClaim", "image", "emptyDir"})

    def test_volumes_do_not_lie_within_each_other(self):
        """A volume that is mounted read-only has no place to mount another one in."""
        for name, resources in self.resources.items():
            for _, container in containers(resources):
                paths = [mount["mountPath"] + "/" for mount in container.get("volumeMounts", [])]
                for inner in paths:
                    self.assertEqual([outer for outer in paths if inner.startswith(outer)], [inner], name)

    def test_images_are_of_this_version(self):
        version = re.search(r"project\(ultrasketch VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text())[1]
        for name in SERVERS + ["kserve"]:
            device = "cuda" if name == "gpu" else "cpu"
            for _, container in containers(self.resources[name]):
                self.assertTrue(container["image"].endswith(f"/ultrasketch:{version}-{device}"), container["image"])

    def test_the_server_starts_with_these_arguments(self):
        changed = {"--listen=0.0.0.0:8001": "--listen=127.0.0.1:0",
                   "--metrics-listen=0.0.0.0:8002": "--metrics-listen=127.0.0.1:0",
                   "--model-repository=/models": f"--model-repository={ROOT}/deploy/models",
                   "--model={{.Name}}=/mnt/models": f"--model=m={ROOT}/deploy/models/classics-20m-sketch",
                   # There is no GPU here.
                   "--device=cuda": "--device=cpu"}
        for name in SERVERS + ["kserve"]:
            for _, container in containers(self.resources[name]):
                arguments = [changed.get(argument, argument) for argument in container["args"]]
                with self.subTest(name), tempfile.TemporaryDirectory() as folder:
                    server = live_prometheus.Process([ultrasketchd, *arguments], pathlib.Path(folder, "log"))
                    try:
                        server.wait_for("event=serving")
                    finally:
                        server.stop()

    def test_memory_suffices_for_the_sample_model(self):
        result = subprocess.run([ultrasketch, "inspect", ROOT / "deploy/models/classics-20m-sketch", "--memory",
                                 "--sequences", "64", "--device", "cpu", "--json"],
                                capture_output=True, text=True, check=True)
        needed = json.loads(result.stdout)["memory"]["total_bytes"] + 100 * 2**20
        for _, container in containers(self.resources["cpu"]):
            resources = container["resources"]
            self.assertGreaterEqual(number_of_bytes(resources["requests"]["memory"]), needed)
            self.assertGreaterEqual(number_of_bytes(resources["limits"]["memory"]), needed)

    def test_the_autoscaler_asks_for_what_the_adapter_has(self):
        resources = self.resources["replicas"]
        scaler = find(resources, "HorizontalPodAutoscaler")["spec"]
        deployment = find(resources, "Deployment")
        self.assertEqual((scaler["scaleTargetRef"]["kind"], scaler["scaleTargetRef"]["name"]),
                         ("Deployment", deployment["metadata"]["name"]))
        self.assertNotIn("replicas", deployment["spec"])
        values = yaml.safe_load(
            (ROOT / "deploy/kubernetes/components/autoscaling/prometheus-adapter-values.yaml").read_text())
        self.assertEqual({metric["pods"]["metric"]["name"] for metric in scaler["metrics"]},
                         {rule["name"]["as"] for rule in values["rules"]["custom"]})

    def test_the_prometheus_rule_is_what_the_rules_are(self):
        script = ROOT / "deploy/prometheus/make_prometheus_rule.py"
        made = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
        self.assertEqual(made, (ROOT / "deploy/kubernetes/components/monitoring/prometheus-rule.yaml").read_text(),
                         f"run {script}")

    def test_the_inference_service_names_its_runtime(self):
        runtime = find(self.resources["kserve"], "ServingRuntime")
        model = find(self.resources["kserve"], "InferenceService")["spec"]["predictor"]["model"]
        self.assertEqual(model["runtime"], runtime["metadata"]["name"])
        self.assertIn(model["modelFormat"]["name"], [each["name"] for each in runtime["spec"]["supportedModelFormats"]])
        self.assertIn(model["protocolVersion"], runtime["spec"]["protocolVersions"])


class ComposeTest(unittest.TestCase):
    def test_is_what_the_specification_of_compose_files_takes(self):
        result = subprocess.run([sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec",
                                 ROOT / "docker/compose.yaml"], capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    kubectl = sys.argv[1]
    if sys.argv[2:] == ["--update"]:
        for each in RENDERED:
            (EXPECTED / f"{each}.yaml").write_text(without_files(render(each)))
        sys.exit()
    ultrasketchd, ultrasketch = sys.argv[2:4]
    unittest.main(argv=[sys.argv[0], *sys.argv[4:]], verbosity=2)
