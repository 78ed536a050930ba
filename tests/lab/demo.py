"""The demo: an address of a Service on three hosts, from its claim to two ways of losing its carrier."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from pathlib import Path

from attrs import define, field

from .laboratory import API_PORT, CHECKOUT, CLUSTER, ETCD_PORT, INTERFACE, WEB_PORT, Host, Lab
from .namespaces import LabError
from .pinging import Pinger
from .processes import Process

ADDRESS = IPv4Address("192.168.1.41")
OUTSIDE = IPv4Address("172.16.1.41")
EXAMPLE = "examples/web.yaml"
RANGE = "192.168.1.0/24"

PICTURE = """\
  client          cluster            node1           node2           node3
  192.168.1.100   192.168.1.10       192.168.1.11    192.168.1.12    192.168.1.13
  (curl, ping)    (etcd, Kubernetes) (kiwi)          (kiwi)          (kiwi)
       |               |                |               |               |
  -----+---------------+----------------+---------------+---------------+----- 192.168.1.0/24"""


@define
class Stage:
    """Where the demo is shown: plain text, with colours on a terminal that wants them."""

    _colour: bool
    _terminal: bool
    _scenes: int = field(default=0, init=False)

    @classmethod
    def of_standard_output(cls) -> Stage:
        terminal = sys.stdout.isatty()
        return cls(terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb", terminal)

    def line(self, text: str = "") -> None:
        print(text, flush=True)

    def scene(self, title: str, text: str = "") -> None:
        """A heading, and what there is to see."""
        if self._terminal and self._scenes:
            # Time to read.
            time.sleep(1.5)
        self._scenes += 1
        self.line()
        self.line(self._in("1", f"{self._scenes}. {title}"))
        if text:
            self.say(text)

    def say(self, text: str) -> None:
        """Sentences."""
        self.line()
        for line in textwrap.wrap(" ".join(text.split()), 96):
            self.line(f"   {line}")

    def result(self, text: str) -> None:
        """What a scene comes to."""
        self.line()
        self.line(self._in("1;32", f"   => {text}"))

    def command(self, where: str, command: str) -> None:
        """A command as it is given on a host."""
        self.line()
        self.line(f"   {self._in('2', where + ' #')} {self._in('36', command)}")

    def output(self, text: str) -> None:
        """What a command printed."""
        for line in text.splitlines():
            self.line(f"   {line}")

    def _in(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text


@define
class Demo:
    """The scenes, one after the other, in a lab."""

    _lab: Lab
    _stage: Stage
    _agents: dict[str, Process] = field(factory=dict, init=False)

    def play(self) -> None:
        self._service()
        self._agents_start()
        self._lab.cluster.start_api("--watch", str(CHECKOUT / "examples"))
        carrier = self._lab.wait_for_carrier(ADDRESS, 30)
        self._lab.wait_until(lambda: self._lab.client.who_answers(ADDRESS), "the client to be answered")
        self._claim(carrier)
        self._address(carrier)
        self._rule(carrier)
        self._request(carrier)
        with self._lab.client.ping(ADDRESS) as pinger:
            pinger.wait_for_reply()
            time.sleep(0.5)
            self._host_dies(carrier, pinger)
            self._order(pinger)

    def _service(self) -> None:
        self._stage.scene(
            "A Service asks for a public address",
            "A Service in Kubernetes names the addresses that it wants to be reached at from outside of the cluster:",
        )
        text = (CHECKOUT / EXAMPLE).read_text()
        self._stage.command("cluster", f"cat {EXAMPLE}")
        self._stage.output("\n".join(line for line in text.splitlines() if not line.startswith("#")))

    def _agents_start(self) -> None:
        self._stage.scene("An agent runs on every host")
        options = shlex.join(["--interface", INTERFACE, "-r", RANGE, *self._lab.agent_options()])
        for host in self._lab.hosts:
            host.serve()
            self._start(host)
            self._stage.command(host.name, f"kiwi {options}")
        self._stage.say(
            """They agree through etcd who carries which address. (A small web server on each host stands for the pods
            behind the Service; it answers with the name of its host.)"""
        )
        names = {f"/kiwi/agents/{host.name}" for host in self._lab.hosts}
        self._lab.wait_until(lambda: names <= set(self._lab.cluster.nodes()), "the agents to start", 30)

    def _start(self, host: Host) -> None:
        self._agents[host.name] = self._lab.start_agent(host)

    def _claim(self, carrier: Host) -> None:
        self._stage.scene(
            f"One agent claims {ADDRESS}",
            "The claim is a key in etcd that only one agent can create. It expires unless that agent keeps it alive:",
        )
        self._run(
            self._lab.client,
            f"curl -s http://{CLUSTER}:{ETCD_PORT}/v2/keys/kiwi/publicips/{ADDRESS}",
            lambda line: True,
        )
        self._stage.say(
            f"""The agent on {carrier.name} says so in its log. The Service's other address is in no range that the
            agents were given:"""
        )
        self._stage.line()
        told = (str(ADDRESS), str(OUTSIDE))
        log = self._agents[carrier.name].output().splitlines()
        self._stage.output("\n".join(line for line in log if any(address in line for address in told)))

    def _address(self, carrier: Host) -> None:
        self._stage.scene(
            f"{carrier.name} has the address",
            f"""It is labelled as Kiwi's ({INTERFACE}:kube), and has a lifetime in the kernel: if the agent dies or
            hangs, the kernel removes the address before the claim can expire. The other hosts do not have it.""",
        )
        for host in self._lab.hosts:
            lines = host.run("ip", "addr", "show", INTERFACE).splitlines()
            self._stage.command(host.name, f"ip addr show {INTERFACE}")
            kept = [i for i, line in enumerate(lines) if " inet " in line]
            self._stage.output("\n".join(line for i in kept for line in lines[i : i + 2] if "forever" not in line))

    def _rule(self, carrier: Host) -> None:
        self._stage.scene("Its traffic is marked in the firewall")
        self._run(
            carrier,
            "iptables-save -t mangle",
            lambda line: "KUBE-PUBLIC" in line and (" -d " not in line or f" {ADDRESS}/" in line),
        )

    def _request(self, carrier: Host) -> None:
        self._stage.scene("The client reaches the Service")
        self._run(self._lab.client, f"curl -s http://{ADDRESS}:{WEB_PORT}", lambda line: True)

    def _host_dies(self, carrier: Host, pinger: Pinger) -> None:
        process = self._agents[carrier.name]
        self._stage.scene(
            f"{carrier.name} dies",
            f"""Its agent is killed with SIGKILL, and its cable is pulled out. The client pings {ADDRESS} every 2 ms.
            Nobody may have the address before the claim has expired, 10 s after it was last kept alive.""",
        )
        self._stage.command(carrier.name, f"kill -KILL {process.pid}")
        self._stage.command("switch", f"ip link set {carrier.name} down")
        self._stage.line()
        died = time.monotonic()
        # In this order: a host that is dead does nothing about its cable.
        process.kill()
        carrier.cut()
        self._at(0.0, f"{carrier.name} is dead")
        removed = self._lab.wait_until(lambda: self._removed(carrier, died), "the kernel to remove the address", 20)
        self._at(removed - died, f"the kernel of {carrier.name} removed the address by itself")
        another = self._lab.wait_for_carrier(ADDRESS, 20)
        assigned = self._lab.ears.carriages(ADDRESS)[-1].since
        self._at(assigned - died, f"{another.name} claimed the address and has it")
        answer = pinger.wait_for_reply(died + 0.1)
        self._at(answer.received - died, f"{another.name} answers the client's pings")
        time.sleep(0.2)
        self._run(self._lab.client, f"curl -s http://{ADDRESS}:{WEB_PORT}", lambda line: True)
        outage = pinger.outage(died - 0.1, time.monotonic())
        self._stage.result(f"The host was dead, and the address did not answer for {outage:.1f} s.")

    def _removed(self, carrier: Host, since: float) -> float | None:
        """When the kernel of a host removed the address."""
        return next(
            (
                carriage.until
                for carriage in self._lab.ears.carriages(ADDRESS)
                if carriage.host == carrier.name and carriage.until is not None and carriage.until > since
            ),
            None,
        )

    def _order(self, pinger: Pinger) -> None:
        for host in self._lab.hosts:
            if self._agents[host.name].status is not None:
                host.plug()
                self._start(host)
                revived = host
        carrier = self._lab.wait_for_carrier(ADDRESS)
        self._stage.scene(
            f"{carrier.name} leaves in order",
            f"""{revived.name} is back with a new agent, and the address stays where it is. Now the agent on
            {carrier.name} is told to go: it takes the address back and releases the claim, and another one takes over
            at once.""",
        )
        self._lab.wait_until(lambda: f"/kiwi/agents/{revived.name}" in self._lab.cluster.nodes(), "the agent to start")
        time.sleep(1)
        process = self._agents[carrier.name]
        self._stage.command(carrier.name, f"kill -TERM {process.pid}")
        told = time.monotonic()
        process.terminate()
        pinger.wait_for_reply(told + 1)
        outage = pinger.outage(told - 0.1, told + 1)
        self._run(self._lab.client, f"curl -s http://{ADDRESS}:{WEB_PORT}", lambda line: True)
        self._stage.say(f"And nothing of Kiwi's is left on {carrier.name}:")
        self._run(carrier, "iptables-save -t mangle", lambda line: "KUBE-PUBLIC" in line, "no rule, no chain")
        self._run(carrier, f"ip addr show {INTERFACE}", lambda line: "kube" in line, "no address")
        self._stage.result(f"The address moved on, and did not answer for {outage * 1000:.0f} ms.")
        if self._lab.ears.overlaps(ADDRESS):
            raise LabError(f"two hosts had the address at the same moment: {self._lab.ears.overlaps(ADDRESS)}")
        self._start(carrier)

    def _at(self, seconds: float, text: str) -> None:
        self._stage.line(f"   {seconds:+6.2f} s  {text}")

    def _run(self, host: Host, command: str, kept: Callable[[str], bool], instead: str = "") -> None:
        """Run a command on a host and show what matters of its output; other words where nothing is left of it."""
        self._stage.command(host.name, command)
        lines = [line.strip() for line in host.run(*command.split()).splitlines() if kept(line)]
        self._stage.output("\n".join(lines) or f"({instead})")

    def look_around(self) -> None:
        """Tell how to look around, and wait for a signal."""
        node, client = self._lab.hosts[0].namespace.name, self._lab.client.namespace.name
        self._stage.scene("Have a look around", "Everything stays up until you press ctrl-C here. As root, elsewhere:")
        self._stage.line()
        for command in (
            f"ip netns exec {node} ip addr show {INTERFACE}",
            f"ip netns exec {node} iptables-save -t mangle",
            f"ip netns exec {client} curl -s http://{ADDRESS}:{WEB_PORT}",
            f"ip netns exec {client} curl -s http://{CLUSTER}:{ETCD_PORT}/v2/keys/kiwi?recursive=true",
            f"ip netns exec {client} curl -s http://{CLUSTER}:{API_PORT}/api/v1/services",
            f"tail -f {self._lab.directory}/kiwi-node*.out",
        ):
            self._stage.line(f"   {command}")
        self._stage.say("Add, change or delete a file in examples/, and watch the agents follow.")
        signal.pause()


def main(arguments: Sequence[str]) -> int:
    stage = Stage.of_standard_output()
    wheel = Path(sys.executable).with_name("etcd")
    etcd = str(wheel) if wheel.exists() else shutil.which("etcd") or "/usr/bin/etcd"
    stage.line("Kiwi gives Kubernetes Services public IP addresses on plain hosts.")
    stage.line()
    stage.line("This machine now has a small network of its own, in network namespaces. Nothing else is touched.")
    stage.line()
    stage.line(PICTURE)
    # A shell that starts something in the background has it ignore ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    lab = Lab(kiwi=["kiwi"])
    status = 0
    try:
        lab.open()
        lab.cluster.start_etcd(etcd)
        demo = Demo(lab, stage)
        demo.play()
        if "--keep" in arguments:
            demo.look_around()
    except KeyboardInterrupt:
        stage.line()
        status = 0 if "--keep" in arguments else 130
    except (AssertionError, LabError) as error:
        stage.line(f"\nThe demo failed: {error}")
        status = 1
    finally:
        lab.close()
        stage.line()
        stage.line("All agents, servers and namespaces of the demo are gone again.")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
