"""Signed images: valid, changed, stripped and remote signatures, and keys that cannot sign."""

import datetime
import json
import zlib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dalle import checkpoint

c2pa = pytest.importorskip("c2pa")
x509 = pytest.importorskip("cryptography.x509")

from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa  # noqa: E402
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID  # noqa: E402

from dalle.sampling.content_credentials import ContentSigner, convert_key, read_credentials, read_pem  # noqa: E402

USES = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign")


def named(name: str):
    parts = {NameOID.ORGANIZATION_NAME: "Test", NameOID.COMMON_NAME: name}
    return x509.Name([x509.NameAttribute(kind, value) for kind, value in parts.items()])


def certificate(subject: str, public, signer, authority: bool, days: int = 30):
    """Return a certificate issued by "root", whose key is `signer`."""
    now = datetime.datetime.now(datetime.timezone.utc)
    usage = {use: False for use in USES} | {"digital_signature": not authority, "key_cert_sign": authority}
    builder = (
        x509.CertificateBuilder(named("root"), named(subject), public, x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=60))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage, encipher_only=False, decipher_only=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if not authority:
        use = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(use, critical=False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def pem(key) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def replace_in_png(content: bytes, kind: bytes, old: bytes, new: bytes) -> bytes:
    """Replace `old` in the chunks of a kind, with valid checksums."""
    place, chunks = 8, [content[:8]]
    while place < len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        name, data = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        data = data.replace(old, new) if name == kind else data
        chunks += [len(data).to_bytes(4, "big"), name, data, zlib.crc32(name + data).to_bytes(4, "big")]
        place += 12 + length
    return b"".join(chunks)


@pytest.fixture(scope="module")
def key_file(tmp_path_factory) -> Path:
    root, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    chain = certificate("signer", own.public_key(), root, False) + certificate("root", root.public_key(), root, True)
    path = tmp_path_factory.mktemp("key") / "key.pem"
    path.write_bytes(pem(own) + chain)
    return path


@pytest.fixture
def signed(checkpoints, run_command, key_file, tmp_path) -> Path:
    """Return the file of an image that sample.py drew and signed."""
    settings = [f"checkpoint={checkpoints}", "caption=a red circle", "candidates=2", "keep=1", "seed=7", "out=drawn"]
    status, printed = run_command("sample", *settings, f"sign={key_file}")
    assert status == 0, printed
    (path,) = (tmp_path / "drawn").glob("a-red-circle-*.png")
    return path


def test_a_signed_image_names_its_checkpoint_and_settings(signed, checkpoints, verify):
    status, printed, _ = verify(signed)
    assert status == 0, printed
    assert "caption    a red circle" in printed
    assert f"checkpoint {checkpoints}: " in printed and checkpoint.digest(checkpoints / "transformer") in printed
    assert "which is on this machine, unchanged" in printed
    assert "sample     seed 7, candidate" in printed
    assert "valid, by signer, Test (no authority that is known here)" in printed


def test_c2pas_own_reader_finds_the_record(signed):
    with c2pa.Reader(str(signed)) as reader:
        content = json.loads(reader.json())
    assert content["validation_state"] == "Valid"
    manifest = content["manifests"][content["active_manifest"]]
    records = {assertion["label"]: assertion["data"] for assertion in manifest["assertions"]}
    assert records["org.dalle.sample"]["caption"] == "a red circle"
    assert records["c2pa.actions.v2"]["actions"][0]["digitalSourceType"].endswith("trainedAlgorithmicMedia")
    assert "key.pem" not in json.dumps(content) and "drawn" not in json.dumps(content)


def test_signing_keeps_pixels_and_text(signed, checkpoints, run_command, tmp_path):
    settings = [f"checkpoint={checkpoints}", "caption=a red circle", "candidates=2", "keep=1", "seed=7", "out=unsigned"]
    run_command("sample", *settings)
    (unsigned,) = (tmp_path / "unsigned").glob("a-red-circle-*.png")
    with Image.open(signed) as one, Image.open(unsigned) as other:
        assert one.tobytes() == other.tobytes()
        assert one.info["caption"] == other.info["caption"]
        assert json.loads(one.info["settings"])["digests"] == json.loads(other.info["settings"])["digests"]


def test_a_changed_image_has_an_invalid_signature(signed, verify):
    changed = signed.with_name("changed.png")
    changed.write_bytes(replace_in_png(signed.read_bytes(), b"iTXt", b"a red circle", b"a red square"))
    credentials = read_credentials(changed)
    assert credentials is not None and not credentials.valid
    status, printed, _ = verify(changed)
    assert status == 1
    assert "caption    a red square" in printed and "signature  invalid: " in printed


def test_an_image_saved_again_has_neither_record_nor_signature(signed, verify):
    stripped = signed.with_name("stripped.png")
    with Image.open(signed) as image:
        image.save(stripped)
    status, printed, _ = verify(stripped)
    assert status == 1
    assert "has no record of how it was made" in printed and "signature  none" in printed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "0 private keys and 0 certificates"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "0 private keys and 1 certificates"),
        (
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "cannot be read",
        ),
    ],
)
def test_an_unusable_key_is_refused_before_anything_is_drawn(content, message, tmp_path, checkpoints, run_command):
    path = tmp_path / "bad.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        ContentSigner(path)
    settings = [f"checkpoint={checkpoints}", "caption=a red circle", "candidates=1", "out=drawn", f"sign={path}"]
    status, _ = run_command("sample", *settings)
    assert status == 2 and not (tmp_path / "drawn").exists()


def test_an_image_with_a_remote_signature_fetches_nothing(signed, verify, tmp_path):
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_error(404)

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/manifest.c2pa"
        xmp = (
            '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
            f'<rdf:Description rdf:about="" xmlns:dcterms="http://purl.org/dc/terms/" dcterms:provenance="{address}"/>'
            "</rdf:RDF></x:xmpmeta>"
        )
        chunks = PngInfo()
        chunks.add_itxt("XML:com.adobe.xmp", xmp)
        Image.new("RGB", (8, 8)).save(tmp_path / "remote.png", pnginfo=chunks)
        status, printed, _ = verify(tmp_path / "remote.png")
        server.shutdown()
    assert requests == []
    assert (status, "signature  none" in printed) == (1, True)


@pytest.mark.parametrize("suffix", ["bmp", "ppm", "ico"])
def test_a_kind_of_file_that_is_never_signed_is_not_invalid(tmp_path, verify, suffix):
    Image.new("RGB", (16, 16)).save(tmp_path / f"image.{suffix}")
    status, printed, _ = verify(tmp_path / f"image.{suffix}")
    assert (status, "signature  none" in printed) == (1, True)


def write_key(path: Path, key: bytes, *chain: bytes) -> Path:
    path.write_bytes(key + b"".join(chain))
    return path


def test_keys_and_certificates_that_do_not_fit_are_refused(tmp_path):
    root, own, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    leaf, top = certificate("signer", own.public_key(), root, False), certificate("root", root.public_key(), root, True)
    expired = certificate("signer", own.public_key(), root, False, days=-10)
    for key, chain in ((other, (leaf, top)), (own, (top, leaf)), (own, (expired, top)), (root, (top,))):
        with pytest.raises(ValueError, match="key.pem cannot sign"):
            ContentSigner(write_key(tmp_path / "key.pem", pem(key), *chain))
    garbage = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    with pytest.raises(ValueError, match="key.pem cannot sign"):
        ContentSigner(write_key(tmp_path / "key.pem", pem(own), garbage))


def test_a_kind_of_key_that_cannot_sign_is_refused(key_file, tmp_path):
    _, chain = read_pem(key_file)
    with pytest.raises(ValueError, match="use ECDSA P-256"):
        ContentSigner(write_key(tmp_path / "dsa.pem", pem(dsa.generate_private_key(1024)), chain))


def test_keys_in_the_formats_of_openssl_are_accepted(tmp_path):
    root, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    chain = certificate("signer", own.public_key(), root, False) + certificate("root", root.public_key(), root, True)
    traditional = serialization.PrivateFormat.TraditionalOpenSSL
    key = own.private_bytes(serialization.Encoding.PEM, traditional, serialization.NoEncryption())
    assert b"BEGIN EC PRIVATE KEY" in key
    ContentSigner(write_key(tmp_path / "key.pem", key, chain))


def test_the_algorithm_follows_from_the_key():
    keys = {
        "es256": ec.generate_private_key(ec.SECP256R1()),
        "es384": ec.generate_private_key(ec.SECP384R1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate(),
        "ps256": rsa.generate_private_key(65537, 2048),
    }
    assert {name: convert_key(pem(key), "key.pem")[1] for name, key in keys.items()} == {name: name for name in keys}
