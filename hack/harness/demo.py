"""hack/demo: a pod lives. Real images from a real registry, played through crictl, each step checked.

All of it happens below one directory and in a network namespace of its own, which are gone afterwards.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time

from harness import cgroups, command, leaks, netns, paths, pods, process, registry, tools
from harness.containerd import Containerd
from harness.crisp import Crisp
from harness.screen import eventually, expect, expect_equal

GRACE_SECONDS = 2
IGNORES_TERM = "trap '' TERM; echo deaf; while :; do sleep 0.1; done"


def arguments():
    parser = argparse.ArgumentParser(prog="hack/demo", description=__doc__)
    parser.add_argument("--cni", action="store_true", help="by the distribution's bridge and portmap plugins, not the built-in network")
    parser.add_argument("--host-network", action="store_true", help="on the machine's own network")
    parser.add_argument("--runtime", choices=("crisp", "containerd"), default="crisp", help="play it on containerd to compare")
    return parser.parse_args()


def _progress(log):
    """What the daemon's log says of a pull, less the time and where it was said."""
    for line in log:
        said = re.search(r"image::pull\S*: (.*?)(?: reference=\S+)?((?: \w+=\S+)*)$", line.rstrip())
        if said:
            figures = re.findall(r" ((?:digest|layer|layers|bytes|total_bytes|received_bytes|seconds)=\S{1,19})", said[2])
            yield " ".join([said[1], *figures])


class Demo:
    def __init__(self, args, undo, screen):
        self.args, self.undo, self.screen = args, undo, screen
        self.ids = set()

    # What the steps say to crictl.

    def create(self, pod, pod_config, container_config):
        container = self.crictl("create", "--no-pull", pod, container_config, pod_config)
        self.ids.add(container)
        return container

    def run_pod(self, config):
        pod = self.crictl("runp", config)
        self.ids.add(pod)
        return pod

    def sync(self, container, *words):
        """ExecSync."""
        return self.crictl("exec", "-s", container, *words).strip()

    def status(self, container):
        return self.crictl.json("inspect", container)["status"]

    def state(self, container):
        return self.status(container)["state"].removeprefix("CONTAINER_")

    def get(self, address, port=pods.HOST_PORT):
        """The body of a good HTTP answer, asked for from the host."""
        status, text = self.netns.get(address, port) or (None, None)
        return text if status == 200 else None

    # The play.

    def play(self):
        self.set_up()
        self.pull()
        before = leaks.Snapshot(self.runtime, (), self.ignored)
        self.born()
        self.network()
        self.shared()
        self.shared_pids()
        self.volume()
        self.logs_and_exec()
        self.deaf()
        if self.args.runtime == "crisp":
            self.daemon_gone()
        self.dies()
        self.nothing_left(before)
        self.end_daemon()

    def set_up(self):
        self.screen.title("A registry, and the daemon")
        process.become_subreaper()
        self.undo.push("processes left below us", process.end_all, lambda: process.descendants(os.getpid()))
        self.directory = paths.scratch("demo")
        self.undo.push(f"directory {self.directory}", shutil.rmtree, self.directory)
        self.cgroup_parent = f"demo-{os.getpid()}"
        self.undo.push("cgroups of the pods", cgroups.remove_tree, self.cgroup_parent)
        with self.screen.step("a network namespace of our own" if not self.args.host_network else "on the host's network") as step:
            self.netns = netns.HostNetwork() if self.args.host_network else netns.Netns(self.undo)
            self.address = self.host_address()
            step.note(f"the host's own address: {self.address}")
        with self.screen.step("crictl, and a client to ask twice for what crictl asks once"):
            tools.crictl(), tools.tool("bench-client")
        with self.screen.step("a registry on loopback, with images made of Debian's busybox and nginx"):
            registry.Registry(self.netns, self.directory, self.undo).provide(*self.image_sets())
        with self.screen.step(f"{self.args.runtime} serves, below {self.directory}") as step:
            kind = Crisp if self.args.runtime == "crisp" else Containerd
            network = "cni" if self.args.cni or kind is Containerd else "embedded"
            self.runtime = kind(self.directory / "d", self.netns, self.undo, network)
            self.crictl = self.runtime.crictl
            conditions = {condition["type"]: condition["status"] for condition in self.crictl.json("info")["status"]["conditions"]}
            step.note(f"network: {network}; {self.crictl('version').splitlines()[1]}")
            expect(conditions.get("RuntimeReady") and conditions.get("NetworkReady"), f"not ready: {conditions}")
        # Stores that stay: images, and what containerd keeps in its database.
        self.ignored = ("lib/images",) if kind is Crisp else ("lib", "cni", "run")
        # Names that stay while nothing new may be below them: the subnet, and what host-local remembers.
        self.lasting = {"run/network/subnet", "run/network/cni", "cni/ipam", "cni/ipam/demo"}
        self.lasting |= {f"cni/ipam/demo/{name}" for name in ("last_reserved_ip.0", "lock")}
        self.configs = pods.Configs(self.directory / "configs", self.directory / "logs", self.cgroup_parent)

    def image_sets(self):
        return ("demo",) if self.args.runtime == "crisp" else ("demo", "critest")

    def host_address(self):
        if not self.args.host_network:
            return netns.ADDRESS
        routed = json.loads(subprocess.run(["ip", "-j", "route", "get", "192.0.2.1"], capture_output=True, text=True).stdout or "[]")
        return routed[0]["prefsrc"] if routed and "prefsrc" in routed[0] else "127.0.0.1"

    def pull(self):
        self.screen.title("Images")
        for name in ("kubia", "nginx", "toolbox"):
            with self.screen.step(f"pull {pods.image(name)}") as step:
                began = self.runtime.log.stat().st_size
                self.crictl("pull", pods.image(name))
                with open(self.runtime.log, errors="replace") as log:
                    log.seek(began)
                    step.note("\n".join(_progress(log)))
        with self.screen.step("the list of images has them, each with its digest") as step:
            listed = {tag: image for image in self.crictl.json("images", "-o", "json")["images"] for tag in image["repoTags"]}
            for name in ("kubia", "nginx", "toolbox"):
                image = listed.get(pods.image(name))
                expect(image, f"{pods.image(name)} is not listed")
                expect(image["repoDigests"], f"{pods.image(name)} has no digest")
                step.note(f"{pods.image(name)}  {int(image['size']) / 1e6:.1f} MB  {image['id'][:19]}")

    def born(self):
        self.screen.title("A pod of three containers")
        with self.screen.step(f"a sandbox: host port {pods.HOST_PORT} to 80, labels, DNS, log directory") as step:
            self.web_config = self.configs.pod(pods.WEB_HOSTNAME, port_mappings=pods.web_ports())
            self.web = self.run_pod(self.web_config)
            inspected = self.crictl.json("inspectp", self.web)["status"]
            expect_equal("its state", inspected["state"], "SANDBOX_READY")
            for key, value in pods.LABELS.items():
                expect_equal(f"its label {key}", inspected["labels"].get(key), value)
            self.pod_address = inspected["network"]["ip"]
            step.note(f"{self.web[:13]} at {self.pod_address}")
        self.volume_path = self.directory / "volume"
        self.containers = {}
        for name, of_image, command in (("kubia", "kubia", ()), ("nginx", "nginx", ()),
                                        ("toolbox", "toolbox", ("sh", "-c", "echo toolbox is up; exec sleep 100000"))):
            with self.screen.step(f"create and start {name}") as step:
                config = self.configs.container(pods.WEB_HOSTNAME, name, of_image, command, self.volume_path if of_image != "nginx" else None)
                self.containers[name] = self.create(self.web, self.web_config, config)
                self.crictl("start", self.containers[name])
                expect_equal("its state", self.state(self.containers[name]), "RUNNING")
                step.note(self.containers[name][:13])

    def network(self):
        self.screen.title("The network")
        wanted = f"You've hit {pods.WEB_HOSTNAME}"
        for what, address, port in (("the host's address", self.address, pods.HOST_PORT), ("the host's loopback", "127.0.0.1", pods.HOST_PORT),
                                    ("the pod's address", self.pod_address, 80)):
            with self.screen.step(f"a request to {what}: {address}:{port}") as step:
                answer = eventually("an answer", lambda: self.get(address, port))
                expect_equal("the answer", answer, wanted)
                step.note(answer)
        with self.screen.step("the containers see each other on localhost"):
            for port in (80, 8080):
                answer = self.sync(self.containers["toolbox"], "wget", "-q", "-O", "-", f"http://127.0.0.1:{port}/")
                expect_equal(f"the answer on {port}", answer, wanted)
        with self.screen.step("resolv.conf holds the pod's DNS configuration"):
            text = self.sync(self.containers["toolbox"], "cat", "/etc/resolv.conf")
            for line in (f"nameserver {pods.DNS['servers'][0]}", "search " + " ".join(pods.DNS["searches"]), "options ndots:5"):
                expect(line in text, f"{line!r} is not in {text!r}")

    def shared(self):
        self.screen.title("What containers of a pod share, and what not")
        kubia, toolbox = self.containers["kubia"], self.containers["toolbox"]
        with self.screen.step("one hostname"):
            for container in (kubia, toolbox):
                expect_equal("the hostname", self.sync(container, "hostname"), pods.WEB_HOSTNAME)
        with self.screen.step("System V shared memory and POSIX message queues") as step:
            self.sync(kubia, "ipc", "put", "left by kubia")
            got = self.sync(toolbox, "ipc", "get")
            expect_equal("what the toolbox finds", got, "shm left by kubia\nmq left by kubia")
            step.note(got)
        with self.screen.step("/dev/shm"):
            self.sync(kubia, "sh", "-c", "echo through shm > /dev/shm/note")
            expect_equal("what the toolbox reads", self.sync(toolbox, "cat", "/dev/shm/note"), "through shm")
        with self.screen.step("but not processes: each sees its own alone") as step:
            seen = self.sync(toolbox, "ps", "-o", "pid,args")
            step.note(seen)
            expect(re.search(r"^\s*1 sleep 100000", seen, re.M), "process 1 in the toolbox is not its own")
            expect("httpd" not in seen and "nginx" not in seen, "the toolbox sees its neighbours")

    def shared_pids(self):
        self.screen.title("A second pod, with one process table")
        with self.screen.step("run it, with two containers"):
            config = self.configs.pod("together", pid=pods.PID_POD)
            self.together = self.run_pod(config)
            containers = []
            for name in ("first", "second"):
                containers.append(self.create(self.together, config, self.configs.container(
                    "together", name, "toolbox", ("sh", "-c", f"echo {name}; exec sleep 2000{len(containers)}"), pid=pods.PID_POD)))
                self.crictl("start", containers[-1])
        with self.screen.step("ps in the first: pause is process 1, the second's is seen") as step:
            seen = self.sync(containers[0], "ps", "-o", "pid,comm,args")
            step.note(seen)
            expect(re.search(r"^\s*1 \S*pause", seen, re.M), "process 1 is not pause")
            expect("sleep 20001" in seen, "the other container's process is not seen")

    def volume(self):
        self.screen.title("A volume")
        with self.screen.step("written by the toolbox, read by kubia"):
            self.sync(self.containers["toolbox"], "sh", "-c", "echo remember > /data/note")
            expect_equal("what kubia reads", self.sync(self.containers["kubia"], "cat", "/data/note"), "remember")
        with self.screen.step("kubia is stopped, removed, made anew: the volume is as it was, the pod serves again"):
            self.crictl("stop", "-t", "1", self.containers["kubia"])
            expect_equal("its state", self.state(self.containers["kubia"]), "EXITED")
            self.crictl("rm", "--keep-logs", self.containers["kubia"])
            again = self.configs.container(pods.WEB_HOSTNAME, "kubia", "kubia", (), self.volume_path, attempt=1)
            self.containers["kubia"] = self.create(self.web, self.web_config, again)
            self.crictl("start", self.containers["kubia"])
            expect_equal("what kubia reads", self.sync(self.containers["kubia"], "cat", "/data/note"), "remember")
            eventually("an answer", lambda: self.get(self.address) == f"You've hit {pods.WEB_HOSTNAME}")

    def logs_and_exec(self):
        self.screen.title("Logs and exec")
        lines = {"kubia": f"kubia serves on port 8080 as {pods.WEB_HOSTNAME}", "nginx": '"GET / HTTP/1.', "toolbox": "toolbox is up"}
        for name, wanted in lines.items():
            with self.screen.step(f"the log of {name}") as step:
                step.note(eventually("its line", lambda: next(
                    (line for line in self.crictl("logs", self.containers[name]).splitlines() if wanted in line), None)))
        with self.screen.step("exec: both streams, in the container's own file system"):
            printed = self.sync(self.containers["toolbox"], "sh", "-c", "echo to stdout; echo to stderr >&2; ls /usr/local/bin")
            for wanted in ("to stdout", "to stderr", "ipc"):
                expect(wanted in printed, f"{wanted!r} is not in {printed!r}")
        with self.screen.step("exec: an exit code comes back"):
            done = self.crictl.attempt("exec", "-s", self.containers["toolbox"], "sh", "-c", "exit 42")
            expect(done.returncode != 0 and "42" in done.stderr, f"42 is not in {done.stderr!r}")

    def deaf(self):
        self.screen.title("A container that ignores TERM")
        with self.screen.step("run it"):
            config = self.configs.container(pods.WEB_HOSTNAME, "deaf", "toolbox", ("sh", "-c", IGNORES_TERM))
            deaf = self.create(self.web, self.web_config, config)
            self.crictl("start", deaf)
            eventually("its first line", lambda: "deaf" in self.crictl("logs", deaf))
        with self.screen.step(f"stop it with {GRACE_SECONDS} s of grace: it is killed then, not before, not much later") as step:
            began = time.monotonic()
            self.crictl("stop", "-t", str(GRACE_SECONDS), deaf)
            took = time.monotonic() - began
            status = self.status(deaf)
            step.note(f"exit code {status['exitCode']} after {took:.1f} s")
            expect(GRACE_SECONDS <= took < GRACE_SECONDS + 3, f"it took {took:.1f} s")
            expect_equal("its exit code", status["exitCode"], 137)
            self.containers["deaf"] = deaf

    def daemon_gone(self):
        self.screen.title("The daemon goes, the pods stay")
        with self.screen.step("TERM to the daemon: it ends, the pod serves on"):
            expect_equal("its exit code", self.runtime.stop(), 0)
            expect_equal("the answer", self.get(self.address), f"You've hit {pods.WEB_HOSTNAME}")
        with self.screen.step("started again, it knows both pods and every container"):
            self.runtime.start()
            expect_equal("pods", set(self.crictl.pods()), {self.web, self.together})
            states = {name: self.state(container) for name, container in self.containers.items()}
            expect_equal("states", states, {"kubia": "RUNNING", "nginx": "RUNNING", "toolbox": "RUNNING", "deaf": "EXITED"})
            expect_equal("the hostname", self.sync(self.containers["toolbox"], "hostname"), pods.WEB_HOSTNAME)

    def dies(self):
        self.screen.title("The end")
        with self.screen.step("stop every container, and again: nothing to do the second time"):
            for _ in range(2):
                for container in self.containers.values():
                    self.crictl("stop", "-t", "1", container)
            for name, container in self.containers.items():
                expect_equal(f"the state of {name}", self.state(container), "EXITED")
        with self.screen.step("stop both pods, twice"):
            for pod in (self.web, self.together) * 2:
                self.crictl("stopp", pod)
                expect_equal("its state", self.crictl.json("inspectp", pod)["status"]["state"], "SANDBOX_NOTREADY")
            expect(self.get(self.address) is None, "the host port still answers")
        with self.screen.step("remove containers and pods, twice"):
            everything = [("container", container) for container in self.containers.values()] + [("pod", pod) for pod in (self.web, self.together)]
            for _ in range(2):
                for kind, name in everything:
                    self.remove(kind, name)
            expect_equal("pods", self.crictl.pods(), [])
            expect_equal("containers", self.crictl.containers(), [])

    def remove(self, kind, name):
        """By a client of our own: crictl asks for the status first, which one that is gone does not have."""
        done = subprocess.run([tools.tool("bench-client"), "--endpoint", self.runtime.endpoint, f"remove-{kind}", name],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True)
        expect_equal(f"removing {kind} {name[:13]}", (done.returncode, done.stderr.strip()), (0, ""))

    def nothing_left(self, before):
        with self.screen.step("nothing is left: process, mount, cgroup, namespace, link, rule, address, file") as step:
            deadline = time.monotonic() + 5
            while True:
                after = leaks.Snapshot(self.runtime, self.ids, self.ignored)
                found = leaks.left_over(before, after, self.runtime, self.lasting)
                if not found or time.monotonic() > deadline:
                    break
                time.sleep(0.1)
            step.note("\n".join(found))
            expect(not found, f"{len(found)} things are left")

    def end_daemon(self):
        with self.screen.step("TERM ends the daemon"):
            expect_equal("its exit code", self.runtime.stop(), 0)


def main():
    args = arguments()
    return command.play("the demo", lambda undo, screen: Demo(args, undo, screen).play())


if __name__ == "__main__":
    sys.exit(main())
