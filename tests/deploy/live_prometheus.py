"""A server under load and a Prometheus that scrapes it, with the repository's own configuration and
dashboards. Everything listens on free ports of the loopback interface and ends with the `with` block."""

import concurrent.futures
import contextlib
import json
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
DASHBOARDS = ROOT / "deploy/grafana/dashboards"
PROMETHEUS = ROOT / "deploy/prometheus"
START_SECONDS = 120

# Proxies of the environment are not for loopback addresses.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def tool(name):
    """The path of a program of Debian's."""
    path = shutil.which(name)
    if path is None:
        raise RuntimeError(f"{name} is not installed: ./run.sh test installs what the tests need")
    return path


def panels(dashboard):
    """All panels of a dashboard but its rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def dashboards():
    return {path.name: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}


class Process:
    """A process whose log goes to a file, searched for the line that says that it serves."""

    def __init__(self, arguments, log):
        self._log = log
        with open(log, "wb") as output:
            self._process = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT)

    def wait_for(self, pattern):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            found = re.search(pattern, self._log.read_text())
            if found:
                return found
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"{self._process.args[0]} did not start:\n{self._log.read_text()}")

    def stop(self):
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Prometheus:
    """The HTTP interface of a Prometheus, and Grafana's way of asking it."""

    def __init__(self, address):
        self.address = address

    def get(self, path, **parameters):
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters, doseq=True)}"
        try:
            with _opener.open(url, timeout=60) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"{parameters}: {json.load(error)['error']}") from error

    def query(self, expression):
        """The samples of an instant vector: [(labels, value)], without those that are no number."""
        data = self.get("query", query=expression)
        found = data["result"] if data["resultType"] == "vector" else [{"metric": {}, "value": data["result"]}]
        samples = [(each["metric"], float(each["value"][1])) for each in found]
        return [sample for sample in samples if sample[1] == sample[1]]

    def query_range(self, expression, start, end, step):
        """The curves of an expression: [(labels, [(time, value)])]."""
        data = self.get("query_range", query=expression, start=start, end=end, step=step)
        return [(each["metric"], [(float(at), float(value)) for at, value in each["values"]])
                for each in data["result"]]

    def variables(self, dashboard, **built_in):
        """What Grafana puts in the place of each variable when all values are chosen."""
        values = {f"__{name}": value for name, value in built_in.items()}
        for variable in dashboard["templating"]["list"]:
            if variable["type"] != "query":
                continue
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()
            found = self.get(f"label/{label}/values", **{"match[]": metric})
            values[variable["name"]] = "(" + "|".join(re.escape(each).replace("\\", "\\\\") for each in found) + ")"
        return values


def substitute(expression, variables):
    return re.sub(r"\$(\w+)", lambda match: variables[match[1]], expression)


class Load:
    """Requests of a few clients, with prompts that share beginnings, and some that are in the wrong."""

    def __init__(self, ultrasketch, server_address, model):
        self._ultrasketch, self._address, self._model = ultrasketch, server_address, model
        self._text = (ROOT / "deploy/demo/sample.txt").read_text()

    def generate(self, number, model=None, max_tokens=48):
        start = 40 * (number % 8)
        prompt = self._text[:200] + self._text[start:start + 60 * (1 + number % 7)]
        return subprocess.run(
            [self._ultrasketch, "generate", "--target", self._address, "--model", model or self._model,
             "--prompt", prompt, "--max-tokens", str(max_tokens), "--ignore-eos", "--seed", str(number)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=300).returncode

    def once(self, requests=32, clients=8):
        """Returns how many requests succeeded."""
        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            good = list(pool.map(self.generate, range(requests)))
        self.generate(0, model="no-such-model")
        self.generate(0, max_tokens=10**6)
        return good.count(0)

    @contextlib.contextmanager
    def waves(self, seconds, clients=4):
        """Load that rises and falls, beside the block, at most for so long."""
        stop = threading.Event()
        end = time.monotonic() + seconds

        def client(index):
            number = index
            while time.monotonic() < end and not stop.is_set():
                quiet = (time.monotonic() * 2 + index * 5) % 60 > 40
                if quiet:
                    stop.wait(0.5)
                    continue
                self.generate(number, model="no-such-model" if number % 41 == 40 else None,
                              max_tokens=10**6 if number % 29 == 28 else 16 + 8 * (number % 12))
                number += clients

        threads = [threading.Thread(target=client, args=(index,)) for index in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()


@contextlib.contextmanager
def serve(ultrasketchd, models, scrape_seconds=1, server_options=()):
    """Yields (address of the server, Prometheus). `models` maps names to folders."""
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = pathlib.Path(temporary)
        arguments = [ultrasketchd, "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0",
                     *server_options]
        for name, model in models.items():
            arguments += ["--model", f"{name}={model}"]
        server = Process(arguments, folder / "server.log")
        stack.callback(server.stop)
        serving = server.wait_for(r"event=serving listen=(\S+) metrics=(\S+)\s")

        # The repository's configuration, but for where, how often, and the rules' absolute path.
        configuration = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        interval = f"{scrape_seconds}s"
        configuration["global"] = {"scrape_interval": interval, "evaluation_interval": interval}
        configuration["rule_files"] = [str(PROMETHEUS / each) for each in configuration["rule_files"]]
        (job,) = configuration["scrape_configs"]
        del job["file_sd_configs"]
        job["static_configs"] = [{"targets": [serving[2]]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        prometheus = Process([tool("prometheus"), f"--config.file={folder}/prometheus.yml",
                              f"--storage.tsdb.path={folder}/data", "--web.listen-address=127.0.0.1:0"],
                             folder / "prometheus.log")
        stack.callback(prometheus.stop)
        address = prometheus.wait_for(r'msg="Listening on" address=(\S+)\n')[1]
        prometheus.wait_for("Server is ready to receive web requests")
        api = Prometheus(address)
        wait_until(lambda: api.query("up == 1"), "the server's first scrape")
        yield serving[1], api


def wait_until(condition, what, seconds=START_SECONDS):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s in vain for {what}")
        time.sleep(0.2)
