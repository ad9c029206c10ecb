"""Which IP addresses may be reached: public ones, and those that the user allowed.

A name is looked up once. All addresses of the answer must pass, and the client connects to one of them. So a hostile
name server gets no second query to answer with another address (rebinding). The list below is IANA's special-purpose
registries as of 2026. `ipaddress.is_global` is not used: its results differ between Python releases.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterable

from pipeline.fetching.errors import Failure
from pipeline.fetching.recent import Recent

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

SPECIAL_V4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier NAT; also metadata services of some clouds
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local; 169.254.169.254 is the metadata service of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
SPECIAL_V6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, Teredo, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
V4_COMPATIBLE = ipaddress.IPv6Network("::/96")

LOOKUP_S = 10.0  # the longest wait for a name server
LOOKUP_LIFETIME_S = 600.0
PASSING_LIFETIME_S = 0.2  # how long a temporary failure is kept: a retry asks again
LOOKUPS_IN_A_ROW = 3  # temporary failures in a row before the host rests
REST_S = 60.0  # how long it then rests
MOST_HOSTS = 20_000
Lookup = Callable[[str, int], Iterable[str]]


def embedded(address: Address) -> tuple[ipaddress.IPv4Address, ...]:
    """The IPv4 addresses that an IPv6 address stands for: v4-mapped, v4-compatible, NAT64, 6to4, Teredo (both ends)."""
    if address.version == 4:
        return ()
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address.sixtofour is not None:
        return (address.sixtofour,)
    if address.teredo is not None:
        return address.teredo
    if address in NAT64 or (address in V4_COMPATIBLE and int(address) > 0xFFFF):
        return (ipaddress.IPv4Address(int(address) & 0xFFFFFFFF),)
    return ()


def is_public(address: Address) -> bool:
    """True for unicast addresses of the open internet. A tunnel's address is public if its targets are public."""
    inner = embedded(address)
    if inner:
        return all(is_public(one) for one in inner)
    if address.version == 4:
        return not any(address in network for network in SPECIAL_V4)
    return address in PUBLIC_V6 and not any(address in network for network in SPECIAL_V6)


class Gate:
    """Decides whether an address may be reached."""

    def __init__(self, allow_addresses: Iterable[str] = ()) -> None:
        self._allowed: tuple[Network, ...] = tuple(ipaddress.ip_network(network) for network in allow_addresses)

    def opens(self, text: str) -> bool:
        """True if the address is public, or if it or the IPv4 addresses in it lie in allowed networks."""
        try:
            address = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            return False
        return is_public(address) or self._is_allowed(address)

    def _is_allowed(self, address: Address) -> bool:
        if any(address.version == network.version and address in network for network in self._allowed):
            return True
        inner = embedded(address)
        return bool(inner) and all(self._is_allowed(one) for one in inner)


def look_up(host: str, port: int) -> list[str]:
    """The addresses of a host in the system's order, each once."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class _Answer:
    """The outcome of one lookup. All threads that ask for the host wait for it."""

    def __init__(self, earlier_failures: int = 0) -> None:
        self.asked = time.monotonic()
        self.earlier_failures = earlier_failures
        self.done = threading.Event()
        self.addresses: list[str] = []
        self.failure: Failure | None = None
        self.expires = float("inf")


class Resolver:
    """Looks every host up once. It returns an answer only if all its addresses may be reached.

    Nothing can interrupt the system's resolver, so a lookup runs in a thread of its own. The caller waits for it only
    as long as it has time.
    """

    def __init__(self, gate: Gate, lookup: Lookup = look_up) -> None:
        self._gate = gate
        self._lookup = lookup
        self._answers: Recent[str, _Answer] = Recent(MOST_HOSTS)
        self._lock = threading.Lock()

    def addresses(self, host: str, port: int, seconds: float) -> list[str]:
        """The addresses to connect to.

        Raises:
            Failure: dns, or blocked_address if any address of the answer may not be reached.
        """
        with self._lock:
            answer = self._answers.get(host)
            if answer is None or answer.expires <= time.monotonic():
                failures = answer.earlier_failures + 1 if answer is not None and answer.failure is not None else 0
                answer = self._answers.put(host, _Answer(failures))
                threading.Thread(target=self._resolve, args=(answer, host, port), daemon=True).start()
        if not answer.done.wait(max(min(seconds, answer.asked + LOOKUP_S - time.monotonic()), 0.001)):
            raise Failure("dns", "the name server did not answer in time")
        if answer.failure is not None:
            raise answer.failure.again()
        return answer.addresses

    def forget_failures(self) -> None:
        """Lets the next lookup of each host that could not be resolved for now ask the name server again."""
        with self._lock:
            for answer in self._answers:
                if answer.done.is_set() and answer.failure is not None and answer.failure.retryable:
                    answer.expires = 0.0

    def _resolve(self, answer: _Answer, host: str, port: int) -> None:
        lifetime = LOOKUP_LIFETIME_S
        try:
            addresses = list(self._lookup(host, port))
            blocked = next((address for address in addresses if not self._gate.opens(address)), None)
            if blocked is not None:
                answer.failure = Failure("blocked_address", f"the host has the address {blocked}, which is not public")
            elif not addresses:
                answer.failure = Failure("dns", "the name has no address")
            answer.addresses = addresses
        except socket.gaierror as error:
            gone = error.errno == socket.EAI_NONAME
            answer.failure = Failure("dns", f"name not resolved: {error.strerror or error}", retryable=not gone)
            again = answer.earlier_failures + 1 < LOOKUPS_IN_A_ROW
            lifetime = LOOKUP_LIFETIME_S if gone else PASSING_LIFETIME_S if again else REST_S
        except (OSError, UnicodeError, ValueError) as error:
            answer.failure = Failure("dns", f"name not resolved: {error}", retryable=False)
        answer.expires = time.monotonic() + lifetime
        answer.done.set()
