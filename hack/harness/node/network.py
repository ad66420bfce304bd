"""Pods' addresses, ports of the host, names; by the embedded bridge, then by CNI plugins."""

import os
import subprocess

from harness import cni, netns, process
from harness.node.manifest import container, image, pod
from harness.screen import eventually, expect, expect_equal

PORT, CNI_PORT, HOST_NETWORK_PORT = 18080, 18081, 18090
_DNS = {"nameservers": ["192.0.2.54"], "searches": ["one.test", "two.test"], "options": [{"name": "ndots", "value": "3"}]}


def _web(name, port, **spec):
    ports = [{"containerPort": 8080, "hostPort": port}]
    return pod(name, [container("kubia", "exec kubia", image=image("kubia"), ports=ports)], **spec)


def manifests(_node):
    return [
        _web("web", PORT, hostname="front", dnsPolicy="None", dnsConfig=_DNS,
             hostAliases=[{"ip": "192.0.2.99", "hostnames": ["alias.test"]}],
             securityContext={"sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "1024"}]}),
        pod("hostnet", [container("serves", f"exec httpd -f -p {HOST_NETWORK_PORT} -h /etc")], hostNetwork=True),
    ]


def _answers(node, address, port, wanted):
    return eventually(f"an answer from {address}:{port}", lambda: node.netns.get(address, port) == (200, wanted))


def check(node, screen):
    with screen.step(f"host port {PORT}: by the host's address, by its loopback; and by the pod's own address"):
        address = node.ready("web")["status"]["podIP"]
        for where, port in ((netns.ADDRESS, PORT), ("127.0.0.1", PORT), (address, 8080)):
            _answers(node, where, port, "You've hit front")
    with screen.step("hostname, hosts and resolv.conf are the kubelet's; a sysctl is the pod's"):
        hosts = node.run("web", "kubia", "cat /etc/hosts")
        expect("Kubernetes-managed" in hosts and f"{address}\tfront" in hosts and "192.0.2.99\talias.test" in hosts, hosts)
        resolv = node.run("web", "kubia", "cat /etc/resolv.conf").splitlines()
        expect_equal("resolv.conf", resolv, ["search one.test two.test", "nameserver 192.0.2.54", "options ndots:3"])
        expect_equal("the sysctl", node.run("web", "kubia", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "1024")
    with screen.step("hostNetwork: the host's namespace, the host's ports"):
        node.ready("hostnet")
        expect_equal("its namespace", process.netns_of(node.pid("hostnet", "serves")), os.readlink(f"/proc/{node.netns.holder}/ns/net"))
        eventually("an answer", lambda: node.netns.get("127.0.0.1", HOST_NETWORK_PORT, "/passwd"))


def check_cni(node, screen):
    """A configuration appears while pods run: the next pod is by the plugins, those that run stay as they are."""
    with screen.step("a CNI configuration appears: the next pod is on the plugins' bridge, its host port by theirs") as step:
        before = node.kubelet.pods()["web"]["status"]["podIP"]
        # Away from the embedded bridge, whose pods go on.
        cni.write_conflist(node.runtime.directory / "cni", "10.89.0.0/16")
        node.runtime.network = "cni"
        node.kubelet.put(_web("plugged", CNI_PORT))
        address = node.ready("plugged")["status"]["podIP"]
        step.note(f"{address}, beside {before}")
        expect_equal("addresses that the plugins lease", cni.leased(node.runtime.directory / "cni"), [address])
        for where, port in ((netns.ADDRESS, CNI_PORT), ("127.0.0.1", CNI_PORT), (address, 8080), (netns.ADDRESS, PORT)):
            _answers(node, where, port, "You've hit front" if port == PORT else "You've hit plugged-node")
        links = subprocess.run([*node.netns.prefix, "ip", "-o", "link", "show", "master", "cni0"], capture_output=True, text=True)
        expect_equal("links at the plugins' bridge", len(links.stdout.splitlines()), 1)
