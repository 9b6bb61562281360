"""C2PA content credentials of sampled images: sign PNG files, and verify the signature of an image file.

A signature shows that a file has not changed since it was written, and whose certificate signed it. Anybody can remove
it together with the record; it is not a watermark.
"""

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from dalle.optional_dependencies import check_installed

ASSERTION = "org.dalle.sample"  # label of the record of caption, seed and settings
CREATED_ACTION = {
    "action": "c2pa.created",
    "digitalSourceType": "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
}
PEM_BLOCK = re.compile(rb"-----BEGIN ([A-Z ]+)-----.*?-----END \1-----\s*", re.DOTALL)
ALGORITHM_OF_CURVE = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
UNTRUSTED = "signingCredential.untrusted"  # no known authority issued the certificate
UNSIGNED = ("ManifestNotFound", "NotSupported", "Remote")  # errors of c2pa for files without an embedded signature
NO_NETWORK = {"verify": {"remote_manifest_fetch": False}}  # the address of a remote manifest is the file's choice


@dataclass(frozen=True)
class Credentials:
    """Content credentials of a file: who signed it, and errors of its validation."""

    issuer: str
    trusted: bool  # the certificate is on the list of trusted authorities, which is empty by default
    errors: list[str]

    @property
    def valid(self) -> bool:
        return not self.errors


class ContentSigner:
    """Signer of PNG files with the private key and the certificates of a PEM file."""

    def __init__(self, path: str | Path):
        """Read the private key and its certificate chain, its own certificate first, and sign a tiny image to try them.

        Raises ValueError if the packages of the extra `sign` are missing, or for an unreadable or unsuitable file.
        """
        check_installed("sign", "sign=", "c2pa", "cryptography")
        import c2pa

        key, chain = read_pem(Path(path))
        key, algorithm = convert_key(key, path)
        tiny = io.BytesIO()
        Image.new("RGB", (1, 1)).save(tiny, "PNG")
        try:
            self.signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm, chain, key, None))
            self.sign(tiny.getvalue(), "", {})
        except c2pa.C2paError as error:
            raise ValueError(
                f"the key and the certificates in {path} cannot sign: {error}. The certificate must belong to the key, "
                "be valid today, be issued by another one, and stand before it"
            ) from error

    def sign(self, png: bytes, title: str, record: Mapping[str, Any]) -> bytes:
        """Return the PNG file with content credentials, which hold `record`. `title` is the image's caption."""
        import c2pa

        manifest = {
            "claim_generator_info": [{"name": "dalle", "version": version("dalle")}],
            "title": title,
            "assertions": [
                {"label": "c2pa.actions", "data": {"actions": [CREATED_ACTION]}},
                {"label": ASSERTION, "data": dict(record)},
            ],
        }
        signed = io.BytesIO()
        with c2pa.Builder(manifest) as builder:
            builder.sign(self.signer, "image/png", io.BytesIO(png), signed)
        return signed.getvalue()


def read_pem(path: Path) -> tuple[bytes, bytes]:
    """Return the private key and the certificates of a PEM file. Raises ValueError if it lacks either."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"the key {path} cannot be read: {error.strerror}") from error
    blocks = [(match[1], match[0]) for match in PEM_BLOCK.finditer(content)]
    keys = [block for label, block in blocks if label.endswith(b"PRIVATE KEY")]
    certificates = [block for label, block in blocks if label == b"CERTIFICATE"]
    if len(keys) != 1 or not certificates:
        raise ValueError(
            f"{path} has {len(keys)} private keys and {len(certificates)} certificates; it needs one private key, its "
            "certificate, and those of the authorities that issued it, in PEM format"
        )
    return keys[0], b"".join(certificates)


def convert_key(key: bytes, path: str | Path) -> tuple[bytes, str]:
    """Convert a private key to PKCS#8, and return C2PA's name of its algorithm. ValueError for another kind of key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    try:
        private = serialization.load_pem_private_key(key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(f"the private key in {path} cannot be read: {error}") from error
    if isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in ALGORITHM_OF_CURVE:
        algorithm = ALGORITHM_OF_CURVE[private.curve.name]
    elif isinstance(private, ed25519.Ed25519PrivateKey):
        algorithm = "ed25519"
    elif isinstance(private, rsa.RSAPrivateKey):
        algorithm = "ps256"
    else:
        raise ValueError(f"the private key in {path} is of a kind that C2PA does not sign with; use ECDSA P-256")
    form = serialization.PrivateFormat.PKCS8
    return private.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()), algorithm


def read_credentials(path: Path) -> Credentials | None:
    """Read and validate the content credentials of an image file; None if it has none. Nothing is fetched.

    Raises ValueError if the packages of the extra `sign` are missing.
    """
    check_installed("sign", "the signature", "c2pa")
    import c2pa

    try:
        context = c2pa.Context(c2pa.Settings.from_dict(NO_NETWORK))
        with c2pa.Reader(str(path), context=context) as reader:
            content = json.loads(reader.json())
    except c2pa.C2paError as error:
        if any(str(error).startswith(kind) for kind in UNSIGNED):
            return None
        return Credentials("unknown", False, [str(error)])
    manifest = content["manifests"][content["active_manifest"]]
    found = [status for status in content.get("validation_status", []) if status["code"] != UNTRUSTED]
    signature = manifest.get("signature_info", {})
    return Credentials(
        issuer=", ".join(filter(None, (signature.get("common_name"), signature.get("issuer")))) or "unknown",
        trusted=content.get("validation_state") == "Trusted",
        errors=[status.get("explanation") or status["code"] for status in found],
    )
