"""What exec probes cost: the processor time of the daemon and the monitors, without the probes' own commands."""

from harness.node.manifest import container, pod


def measure(node, screen, account):
    raise NotImplementedError
