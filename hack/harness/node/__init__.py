"""hack/node-test: an upstream kubelet on crisp, with static pods, seen from outside.

__main__.py  the command                        play.py       the order of things
node.py      what the scenarios ask             manifest.py   pods as the kubelet reads them
kubelet.py   the kubelet and its API            inside.py     keeps it off the machine
cgroup.py    the cgroup that its pods live in   registry.py   a registry that wants a password
probes.py    what exec probes cost              the others    scenarios: the pods each needs, and what must be seen
"""
