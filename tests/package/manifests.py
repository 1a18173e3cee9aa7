#!/usr/bin/env python3
"""The manifests of client/packaging/deploy against what they are about: kvmd's defaults, its unit, and kvctl.

    manifests.py --source DIR --kvmd KVMD --kvctl KVCTL     paths, users, limits and probes agree; what they run runs
    manifests.py --source DIR --schemas                     docker-compose and Kubernetes' schemas take them
    manifests.py --source DIR --kvmd KVMD --kvctl KVCTL --self-test     that each rule can fail

Exit code 77: it can't run here; the reason is said. --schemas needs docker-compose and the Python package
kubernetes-validate, which has the schemas of Kubernetes' releases. Neither needs Docker or a cluster, and neither shows
that these would run it.
"""

import argparse
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

try:
    import yaml
except ImportError:
    print("SKIPPED: no PyYAML here (scripts/python_env.sh)")
    sys.exit(77)

HERE = pathlib.Path("client/packaging/deploy")
FILES = ("Containerfile", "compose.yaml", "kvmd.toml", "kubernetes.yaml", "kubernetes-worker.yaml")
# Of Kubernetes, the oldest and the newest that kubernetes-validate knows, are in its versions.
OLDEST_KUBERNETES = "1.28.0"
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 2**10, "m": 2**20, "g": 2**30, "K": 2**10, "M": 2**20, "G": 2**30}


def size(text):
    """Bytes of `8Gi`, `8g` and `8G`, which mean the same in a manifest, a compose file and a unit."""
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]*)", str(text)).groups()
    return int(number) * (UNITS[unit] if unit else 1)


class Facts:
    """What the manifests have to agree with."""

    def __init__(self, source, kvmd):
        unit = (source / "systemd/kvmd.service.in").read_text()

        def setting(name):
            return re.search(rf"^{name}=(\S+)", unit, re.M)[1]

        self.kvmd = kvmd
        self.memory = size(setting("MemoryMax"))
        self.descriptors = int(setting("LimitNOFILE"))
        self.oom = int(setting("OOMScoreAdjust"))
        self.watchdog_s = int(setting("WatchdogSec").rstrip("s"))
        self.socket = re.search(r"^ListenStream=(\S+)", (source / "systemd/kvmd.socket").read_text(), re.M)[1]
        shown = subprocess.run([kvmd, "--help"], check=True, capture_output=True, text=True).stdout
        self.default_socket = re.search(r"--socket TEXT\s*[=\[](\S+?)[\]\s]", shown)[1]
        self.version = re.search(r"^project\(kvmd VERSION (\S+)", (source / "CMakeLists.txt").read_text(), re.M)[1]


class Check:
    """Collects what does not agree."""

    def __init__(self):
        self.findings = []

    def same(self, what, found, wanted):
        if found != wanted:
            self.findings.append(f"{what}: {found}, not {wanted}")


def check_container(check, what, security, user):
    """A container of kvmd's user that may do nothing but speak over its socket."""
    wanted = {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    check.same(f"{what}: securityContext", security, wanted)


def check_compose(check, text, facts, user):
    services = yaml.safe_load(text)["services"]
    kvmd, worker, directory = services["kvmd"], services["worker"], services["directory"]
    folder = os.path.dirname(facts.socket)
    check.same("compose: mem_limit", size(kvmd["mem_limit"]), facts.memory)
    check.same("compose: nofile", kvmd["ulimits"]["nofile"], facts.descriptors)
    check.same("compose: oom_score_adj", kvmd["oom_score_adj"], facts.oom)
    check.same("compose: kvmd's user", kvmd["user"], f"{user}:{user}")
    check.same("compose: pid of kvmd and worker", (kvmd["pid"], worker["pid"]), ("host", "host"))
    check.same("compose: network", kvmd["network_mode"], "none")
    check.same(
        "compose: rights",
        (kvmd["read_only"], kvmd["cap_drop"], kvmd["security_opt"]),
        (True, ["ALL"], ["no-new-privileges:true"]),
    )
    check.same(
        "compose: volumes of kvmd", kvmd["volumes"], [f"{folder}:{folder}", "./kvmd.toml:/etc/kvmd/kvmd.toml:ro"]
    )
    check.same("compose: volumes of the worker", worker["volumes"], [f"{folder}:{folder}:ro"])
    check.same(
        "compose: volumes of the directory",
        directory["volumes"],
        [f"{os.path.dirname(folder)}:/host{os.path.dirname(folder)}"],
    )
    check.same(
        "compose: the directory",
        directory["entrypoint"],
        ["install", "-d", "-o", user, "-g", user, "-m", "0755", f"/host{folder}"],
    )
    check.same("compose: health", kvmd["healthcheck"]["test"], ["CMD", "kvctl", "status"])
    for name, service in services.items():
        if "userns_mode" in service:
            check.findings.append(f"compose: {name} is in a user namespace, where kvmd knows no users")


def mount(container, name):
    return next((each for each in container.get("volumeMounts", ()) if each["name"] == name), {})


def check_kubernetes(check, text, worker_text, facts, user):
    documents = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(text)}
    folder = os.path.dirname(facts.socket)
    for name in ("kvmd", "kvmd-exporter"):
        specification = documents["DaemonSet", name]["spec"]
        check.same(
            f"{name}: selector",
            specification["selector"]["matchLabels"],
            specification["template"]["metadata"]["labels"],
        )
        pod = specification["template"]["spec"]
        if pod.get("hostUsers", True) is not True:
            check.findings.append(f"{name}: hostUsers is off, where kvmd knows no users")
        paths = [each["hostPath"]["path"] for each in pod["volumes"] if "hostPath" in each]
        check.same(f"{name}: hostPath", paths, [folder])
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            check.same(f"{name}: image", container["image"], f"kvmd:{facts.version}")
            check.same(
                f"{name}: mount of {container['name']}",
                mount(container, "socket"),
                {"name": "socket", "mountPath": folder},
            )
            if not {"requests", "limits"} <= container["resources"].keys():
                check.findings.append(f"{name}: {container['name']} has no requests or no limits")
        check_container(check, name, pod["containers"][0]["securityContext"], int(user))
    pod = documents["DaemonSet", "kvmd"]["spec"]["template"]["spec"]
    container, directory = pod["containers"][0], pod["initContainers"][0]
    check.same("kvmd: hostPID", pod.get("hostPID"), True)
    check.same(
        "kvmd: the directory", directory["command"], ["install", "-d", "-o", user, "-g", user, "-m", "0755", folder]
    )
    for kind in ("requests", "limits"):
        check.same(f"kvmd: memory, {kind}", size(container["resources"][kind]["memory"]), facts.memory)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        check.same(f"kvmd: {probe}", container[probe]["exec"]["command"], ["kvctl", "status"])
    alive = container["livenessProbe"]
    check.same("kvmd: time until it is restarted", alive["periodSeconds"] * alive["failureThreshold"], facts.watchdog_s)
    check.same("kvmd: configuration", mount(container, "configuration").get("mountPath"), "/etc/kvmd")
    exporter = documents["DaemonSet", "kvmd-exporter"]["spec"]["template"]["spec"]
    check.same("kvmd-exporter: hostNetwork", exporter.get("hostNetwork"), True)
    container = exporter["containers"][0]
    for probe in ("readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        check.same(f"kvmd-exporter: {probe}", f"{asked['host']}:{asked['port']}", container["command"][-1])
    worker = yaml.safe_load(worker_text)["spec"]
    check.same("worker: hostPID", worker.get("hostPID"), True)
    check.same("worker: hostPath", [each["hostPath"]["path"] for each in worker["volumes"]], [folder])
    check.same(
        "worker: mount", mount(worker["containers"][0], "kvmd"), {"name": "kvmd", "mountPath": folder, "readOnly": True}
    )
    if worker["securityContext"]["runAsUser"] in (0, int(user)):
        check.findings.append("worker: has kvmd's user, or root")
    return documents


def takes(kvmd, configuration):
    """What kvmd says against a configuration; empty if nothing."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(configuration)
        file.flush()
        done = subprocess.run([kvmd, "--config", file.name, "--check-config"], capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def findings(texts, facts):
    """Everything in which the texts, {name of file: text}, do not agree with the facts or with each other."""
    check = Check()
    check.same("the unit's socket and kvmd's default", facts.default_socket, facts.socket)
    image = texts["Containerfile"]
    user = re.search(r"useradd .*--uid (\d+)", image)[1]
    check.same("Containerfile: USER", re.search(r"^USER (\S+)", image, re.M)[1], f"{user}:{user}")
    check.same(
        "Containerfile: ENTRYPOINT",
        re.search(r"^ENTRYPOINT (.*)", image, re.M)[1],
        '["/usr/bin/kvmd", "--config", "/etc/kvmd/kvmd.toml"]',
    )
    check_compose(check, texts["compose.yaml"], facts, user)
    documents = check_kubernetes(check, texts["kubernetes.yaml"], texts["kubernetes-worker.yaml"], facts, user)
    configurations = {
        "kvmd.toml": texts["kvmd.toml"],
        "kubernetes.yaml": documents["ConfigMap", "kvmd"]["data"]["kvmd.toml"],
    }
    for name, configuration in configurations.items():
        # As it is, and with what it proposes.
        for each in (configuration, re.sub(r"^# (\S+ = )", r"\1", configuration, flags=re.M)):
            if said := takes(facts.kvmd, each):
                check.findings.append(f"{name}: {said}")
        check.same(f"{name}: socket", re.search(r'^socket = "(.*)"', configuration, re.M)[1], facts.socket)
    return check.findings


# What one finds wrong with each of them.
MUTATIONS = (
    ("Containerfile", "USER 59990:59990", "USER 0:0"),
    ("Containerfile", "--uid 59990", "--uid 1000"),
    ("compose.yaml", "nofile: 262144", "nofile: 1024"),
    ("compose.yaml", "mem_limit: 8g", "mem_limit: 512m"),
    ("compose.yaml", "/run/kvmd:/run/kvmd:ro", "/run/kvmd/kvmd.sock:/run/kvmd/kvmd.sock"),
    ("compose.yaml", 'user: "59990:59990"', 'user: "59990:59990"\n    userns_mode: private'),
    ("kvmd.toml", '"/run/kvmd/kvmd.sock"', '"/tmp/kvmd.sock"'),
    ("kvmd.toml", 'host-cache = "64G"', 'host-cash = "64G"'),
    ("kubernetes.yaml", "memory: 8Gi", "memory: 1Gi"),
    ("kubernetes.yaml", "hostPID: true", "hostPID: false"),
    ("kubernetes.yaml", "hostPID: true", "hostPID: true\n      hostUsers: false"),
    ("kubernetes.yaml", "runAsUser: 59990", "runAsUser: 59991"),
    ("kubernetes.yaml", "hostPath: {path: /run/kvmd, type: DirectoryOrCreate}", "hostPath: {path: /var/run/kvmd}"),
    ("kubernetes.yaml", "failureThreshold: 3\n", "failureThreshold: 1\n"),
    ("kubernetes.yaml", "127.0.0.1:9464", "127.0.0.1:9465"),
    ("kubernetes.yaml", "image: kvmd:0.", "image: kvmd:9."),
    ("kubernetes.yaml", "matchLabels: {app.kubernetes.io/name: kvmd}", "matchLabels: {app.kubernetes.io/name: other}"),
    ("kubernetes-worker.yaml", "runAsUser: 1000", "runAsUser: 59990"),
    ("kubernetes-worker.yaml", "readOnly: true", "readOnly: false"),
)


def self_test(texts, facts):
    for name, right, wrong in MUTATIONS:
        assert right in texts[name], f"{name} has no {right!r}"
        found = findings({**texts, name: texts[name].replace(right, wrong, 1)}, facts)
        assert found, f"{name} with {wrong!r} is taken"
        print(f"{wrong!r}: {found[0].splitlines()[0]}")


def eventually(what, done):
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline, f"{what} did not come about in 60 s"
        time.sleep(0.05)


def check_commands(texts, kvmd, kvctl):
    """The probe's command is healthy with a kvmd and not without one; the exporter's command serves."""
    documents = {
        (each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(texts["kubernetes.yaml"])
    }

    def container(name):
        return documents["DaemonSet", name]["spec"]["template"]["spec"]["containers"][0]

    probe = container("kvmd")["livenessProbe"]["exec"]["command"]
    served = container("kvmd-exporter")["command"]
    assert (probe[0], served[0]) == ("kvctl", "kvctl")
    with tempfile.TemporaryDirectory() as name:
        socket = os.path.join(name, "kvmd.sock")
        environment = {**os.environ, "KVMD_SOCKET": socket}

        def probed():
            return subprocess.run([kvctl, *probe[1:]], env=environment, capture_output=True).returncode

        assert probed() == 2, "the probe is healthy without a kvmd"
        processes = [subprocess.Popen([kvmd, "--socket", socket, "--log-level", "warn"])]
        try:
            eventually("kvmd's health", lambda: probed() == 0)
            # Another port: this machine's may be taken.
            arguments = [*served[1:-1], "127.0.0.1:0"]
            exporter = subprocess.Popen(
                [kvctl, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            processes.append(exporter)
            address = next(found for line in exporter.stdout if (found := re.search(r"127\.0\.0\.1:\d+", line)))[0]
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
                assert b"\nkvmd_up 1" in answer.read()
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait(20)


def check_schemas(folder):
    """docker-compose and Kubernetes' own schemas, in which an unknown field is an error."""
    missing = []
    if shutil.which("docker-compose"):
        done = subprocess.run(
            ["docker-compose", "-f", folder / "compose.yaml", "config", "--quiet"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        print("docker-compose takes compose.yaml")
    else:
        missing.append("docker-compose (scripts/install_deps.sh --lint)")
    if importlib.util.find_spec("kubernetes_validate"):
        import kubernetes_validate

        for version in (OLDEST_KUBERNETES, kubernetes_validate.latest_version()):
            for name in ("kubernetes.yaml", "kubernetes-worker.yaml"):
                for document in yaml.safe_load_all((folder / name).read_text()):
                    kubernetes_validate.validate(document, version, strict=True)
                    wrong = {**document, "speck": {}}
                    try:
                        kubernetes_validate.validate(wrong, version, strict=True)
                    except kubernetes_validate.ValidationError:
                        continue
                    raise AssertionError(f"{name}: the schema takes a field that is none")
            print(f"Kubernetes {version} takes the manifests")
    else:
        missing.append("the Python package kubernetes-validate (scripts/python_env.sh)")
    if missing:
        print("SKIPPED: not here: " + ", ".join(missing))
        sys.exit(77)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--kvmd")
    parser.add_argument("--kvctl")
    parser.add_argument("--schemas", action="store_true")
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.source / HERE
    texts = {name: (folder / name).read_text() for name in FILES}
    if arguments.schemas:
        check_schemas(folder)
        return
    facts = Facts(arguments.source, arguments.kvmd)
    if arguments.self_test:
        self_test(texts, facts)
        return
    found = findings(texts, facts)
    print(*found, sep="\n", end="")
    if found:
        sys.exit(1)
    check_commands(texts, arguments.kvmd, arguments.kvctl)


if __name__ == "__main__":
    main()
