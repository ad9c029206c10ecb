"""Statements inside an image: conformance cases of IPTC/PLUS and C2PA, in every container that is decoded."""

import io
import json
import struct
import time
import zlib
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from pipeline.fetching import images
from pipeline.fetching.embedded import statements
from pipeline.fetching.errors import Failure
from pipeline.fetching.helper import Decoder
from pipeline.fetching.options import FetchOptions
from tests.webserver import picture

YES, NO, UNSAID = True, False, None
VOCABULARY = "http://ns.useplus.org/ldf/vocab/"


def packet(properties: str) -> bytes:
    about = 'rdf:about="" xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/"'
    syntax = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
    rdf = f'<rdf:RDF xmlns:rdf="{syntax}"><rdf:Description {about} {properties}</rdf:RDF>'
    return f'<?xpacket begin=""?><x:xmpmeta xmlns:x="adobe:ns:meta/">{rdf}</x:xmpmeta><?xpacket end="w"?>'.encode()


def attribute(value: str) -> bytes:
    return packet(f'plus:DataMining="{value}"/>')


def element(value: str) -> bytes:
    return packet(f"><plus:DataMining>{value}</plus:DataMining></rdf:Description>")


def resource(value: str) -> bytes:
    return packet(f'><plus:DataMining rdf:resource="{value}"/></rdf:Description>')


# (PLUS LDF vocabulary "Data Mining": the code, statement)
CODES = [
    ("DMI-UNSPECIFIED", UNSAID),
    ("DMI-ALLOWED", YES),
    ("DMI-PROHIBITED-AIMLTRAINING", NO),
    ("DMI-PROHIBITED-GENAIMLTRAINING", NO),
    ("DMI-PROHIBITED-EXCEPTSEARCHENGINEINDEXING", NO),
    ("DMI-PROHIBITED", NO),
    ("DMI-PROHIBITED-SEECONSTRAINT", NO),
    ("DMI-PROHIBITED-SEEEMBEDDEDRIGHTSEXPR", NO),
    ("DMI-PROHIBITED-SEELINKEDRIGHTSEXPR", NO),
    ("DMI-SOMETHINGNEW", UNSAID),
]


def said(body: bytes, protocol: str) -> bool | None:
    found = statements(body)[protocol]
    return None if found is None else found[0]


@pytest.mark.parametrize(("code", "meaning"), CODES)
@pytest.mark.parametrize("form", [attribute, element, resource])
@pytest.mark.parametrize("prefix", [VOCABULARY, ""], ids=["uri", "code"])
def test_codes_in_every_form_of_xmp(code: str, meaning: bool | None, form: Any, prefix: str) -> None:
    assert said(form(prefix + code), "iptc") is meaning


def saved(xmp: bytes, format: str) -> bytes:
    out, image = io.BytesIO(), Image.open(io.BytesIO(picture(1)))
    if format == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode(), zip=True)
        image.save(out, format, pnginfo=info)
    elif format == "TIFF":
        image.save(out, format, tiffinfo={700: xmp})
    else:
        image.save(out, format, xmp=xmp)
    return out.getvalue()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_xmp_in_every_container(format: str) -> None:
    refused, allowed = (saved(attribute(VOCABULARY + code), format) for code in ("DMI-PROHIBITED", "DMI-ALLOWED"))
    options = FetchOptions()
    with pytest.raises(Failure, match="DMI-PROHIBITED") as raised:
        images.decode(refused, options)
    assert (raised.value.status, raised.value.protocol) == ("opt_out", "iptc")
    assert images.decode(allowed, options).jpeg == images.decode(refused, FetchOptions(ignore_rights=("iptc",))).jpeg


# ---- C2PA


def cbor(item: Any) -> bytes:
    if isinstance(item, str):
        return head(3, len(item.encode())) + item.encode()
    if isinstance(item, dict):
        return head(5, len(item)) + b"".join(cbor(key) + cbor(value) for key, value in item.items())
    if isinstance(item, list):
        return head(4, len(item)) + b"".join(map(cbor, item))
    return head(0, item)


def head(kind: int, size: int) -> bytes:
    return bytes([kind << 5 | size]) if size < 24 else bytes([kind << 5 | 25]) + size.to_bytes(2, "big")


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def assertion(entries: Any, label: str = "c2pa.training-mining", kind: bytes = b"cbor") -> bytes:
    content = {"entries": entries}
    data = cbor(content) if kind == b"cbor" else json.dumps(content).encode()
    described = kind + b"\x00\x11\x00\x10\x80\x00\x00\xaa\x00\x38\x9b\x71"
    return box(b"jumb", box(b"jumd", described + b"\x03" + label.encode() + b"\0") + box(kind, data))


def use(word: str) -> dict[str, str]:
    return {"use": word}


# (rule of C2PA 1.4 "Training and Data Mining" or CAWG 1.0, entries, statement)
ENTRIES = [
    ("notAllowed: training", {"c2pa.ai_training": use("notAllowed")}, NO),
    ("notAllowed: generative training", {"c2pa.ai_generative_training": use("notAllowed")}, NO),
    ("notAllowed: data mining", {"c2pa.data_mining": use("notAllowed")}, NO),
    ("inference is no training", {"c2pa.ai_inference": use("notAllowed")}, UNSAID),
    ("allowed", {"c2pa.ai_training": use("allowed")}, YES),
    ("constrained is notAllowed", {"c2pa.ai_training": use("constrained") | {"constraints_info": "CC-BY"}}, NO),
    ("several entries: the stricter", {"c2pa.ai_training": use("allowed"), "c2pa.data_mining": use("notAllowed")}, NO),
    ("several entries", {"c2pa.ai_inference": use("notAllowed"), "c2pa.ai_training": use("allowed")}, YES),
    ("CAWG", {"cawg.ai_training": use("notAllowed")}, NO),
    ("CAWG", {"cawg.ai_generative_training": use("constrained")}, NO),
    ("CAWG", {"cawg.data_mining": use("allowed")}, YES),
    ("another key", {"com.example.other": use("notAllowed")}, UNSAID),
    ("another word", {"c2pa.ai_training": use("perhaps")}, UNSAID),
    ("no entries", {}, UNSAID),
    ("entries that are none", [1, 2], UNSAID),
    ("an entry that is none", {"c2pa.ai_training": 5}, UNSAID),
]


@pytest.mark.parametrize(("rule", "entries", "meaning"), ENTRIES)
@pytest.mark.parametrize("kind", [b"cbor", b"json"])
@pytest.mark.parametrize("label", ["c2pa.training-mining", "cawg.training-mining"])
def test_assertions(rule: str, entries: Any, meaning: bool | None, kind: bytes, label: str) -> None:
    assert said(b"RIFF" + assertion(entries, label, kind), "c2pa") is meaning, rule


def test_cbor_of_indefinite_length() -> None:
    text = b"\x7f" + cbor("notAl") + cbor("lowed") + b"\xff"
    entries = b"\xbf" + cbor("c2pa.ai_training") + b"\xbf" + cbor("use") + text + b"\xff\xff"
    data = b"\xa1" + cbor("entries") + b"\xd8\x20" + entries  # with a tag
    whole = box(b"jumd", b"\x03c2pa.training-mining\0") + box(b"cbor", data)
    assert said(whole, "c2pa") is NO


def with_app11(jpeg: bytes, jumbf: bytes, size: int) -> bytes:
    """The JPEG with a box cut into segments of so many bytes."""
    parts = [jumbf[at : at + size] for at in range(8, len(jumbf), size)]
    segments = [
        b"\xff\xeb" + struct.pack(">HHHI", 2 + 8 + 8 + len(part), 0x4A50, 1, number) + jumbf[:8] + part
        for number, part in enumerate(parts, 1)
    ]
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


@pytest.mark.parametrize("size", [1000, 37, 5])
def test_a_jpeg_with_a_manifest(size: int) -> None:
    manifest = box(b"jumb", assertion({"c2pa.ai_training": use("notAllowed")}))
    body = with_app11(picture(1), manifest, size)
    with pytest.raises(Failure, match=r"c2pa.training-mining: c2pa.ai_training notAllowed") as raised:
        images.decode(body, FetchOptions())
    assert raised.value.protocol == "c2pa"


def test_a_png_with_a_manifest() -> None:
    png, chunk = picture(1, format="PNG"), b"caBX" + assertion({"cawg.ai_training": use("notAllowed")})
    body = png[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]
    assert said(body, "c2pa") is NO


def test_the_decoding_process_names_the_protocol() -> None:
    decoder = Decoder(FetchOptions())
    try:
        with pytest.raises(Failure) as raised:
            decoder.decode(saved(attribute("DMI-PROHIBITED"), "JPEG"))
        assert (raised.value.status, raised.value.protocol) == ("opt_out", "iptc")
        assert decoder.decode(picture(1)).width
    finally:
        decoder.close()


def test_ordinary_and_damaged_images_say_nothing() -> None:
    for format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        assert statements(picture(1, format=format)) == {"iptc": None, "c2pa": None}
    whole = with_app11(picture(1), assertion({"c2pa.ai_training": use("allowed")}), 40)
    for end in range(0, 400, 7):
        statements(whole[:end])
    for junk in (b"", b"\xff\xd8\xff\xeb", b"\x89PNG\r\n\x1a\n" + b"\0" * 20, b"training-mining\0cbor", b"DataMining"):
        assert statements(junk) == {"iptc": None, "c2pa": None}


def test_hostile_images_take_no_time() -> None:
    start = time.process_time()
    deep = b"\x81" * 1_000_000
    for body in (
        b"DataMining" * 400_000,
        b"c2pa.training-mining\0" * 200_000,
        box(b"jumd", b"\x03c2pa.training-mining\0") + box(b"cbor", deep),
        b"\xff\xd8" + (b"\xff\xeb\x00\x12JP" + b"\0" * 14) * 200_000,
        b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0iTXt\0\0\0\0" * 300_000,
    ):
        assert statements(body) == {"iptc": None, "c2pa": None}
    assert time.process_time() - start < 5
