"""The options of fetching. Every limit has a default that is safe on the open web."""

from __future__ import annotations

import dataclasses

PROJECT_URL = "https://github.com/openwit/openwit"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """Limits, politeness and the form of the stored image.

    Attributes:
        allow_addresses: networks (CIDR) that may be reached although they are not public: tests, intranets.
        deadline_s: seconds on the wire for a URL, with its redirects and retries. Waiting in the host's queue is free.
        connect_s: seconds for a connection to one address.
        max_bytes: of a body, both as sent and after decompression (Content-Encoding).
        max_pixels: width x height, checked before pixels are decoded.
        min_side, max_aspect: smaller or longer images are counted as too_small and aspect.
        redirects: hops followed; each is checked like the first URL.
        retries: further tries for temporary failures (dns, tcp, http_5xx, rate_limited).
        backoff_s: wait before the first retry, doubled for each further one.
        longest_wait_s: a URL that would wait longer than this for its host is left for a later run.
        threads: downloads at once. per_host: of them at one host. delay_s: between two requests to one host.
        user_agent: product name; robots.txt is read under it. contact: a URL or address sent along.
        robots_agents: crawlers of data sets; a group of robots.txt that names one of them counts for us, too.
        ignore_rights: protocols (text/rights.PROTOCOLS) that are neither asked for nor honoured.
        ca_file: certificates to trust instead of the system's.
        memory: bytes of bodies and decoded pixels that a process holds at once.
        image_size: short side of the stored image; smaller images are stored as they are.
        quality: of the JPEG.
        decode_s, decode_bytes: CPU seconds for one image, and memory (RLIMIT_DATA) of the decoding process.
        pdq: also compute the PDQ hash of each picture, which needs the package pdqhash.
        in_process: decode in the worker itself, for systems without child processes. A crash then ends the worker.
    """

    allow_addresses: tuple[str, ...] = ()
    deadline_s: float = 30.0
    connect_s: float = 5.0
    max_bytes: int = 16 << 20
    max_pixels: int = 25_000_000
    min_side: int = 16
    max_aspect: float = 20.0
    redirects: int = 8
    retries: int = 2
    backoff_s: float = 0.5
    longest_wait_s: float = 60.0
    threads: int = 32
    per_host: int = 4
    delay_s: float = 0.0
    user_agent: str = "OpenWIT"
    contact: str = PROJECT_URL
    robots_agents: tuple[str, ...] = ("CCBot",)
    ignore_rights: tuple[str, ...] = ()
    ca_file: str = ""
    memory: int = 256 << 20
    image_size: int = 256
    quality: int = 90
    decode_s: int = 10
    decode_bytes: int = 448 << 20
    pdq: bool = False
    in_process: bool = False

    def respects(self, *protocols: str) -> bool:
        """True if one of the protocols is honoured."""
        return any(protocol not in self.ignore_rights for protocol in protocols)

    @property
    def agent_line(self) -> str:
        """The User-Agent header: the product and a contact."""
        return f"{self.user_agent}/1.0 (+{self.contact})" if self.contact else f"{self.user_agent}/1.0"
