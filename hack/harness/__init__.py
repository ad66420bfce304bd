"""What hack's commands share: namespaces, registries, runtimes under test, steps on the screen, leak checks.

undo.py      what was made is unmade            process.py   daemons, and every process below us
netns.py     a network of our own               cgroups.py   finding, reading and removing cgroups
mounts.py    mounts below a directory           paths.py     where things lie
tools.py     crictl, critest, bench-client      registry.py  a registry with the fixtures in it
cni.py       a conflist for Debian's plugins    crictl.py    crictl as a function
containerd.py, crisp.py  the runtimes           leaks.py     what is left over
screen.py    steps, named, checked and timed   command.py   how a command ends
demo.py, critest.py, bench*.py, suite.py        the commands
node/        a kubelet on crisp
"""
