"""Certificates for the test peers: good ones signed by the lab's authority, and bad ones with one fault each."""

import argparse
import datetime
import pathlib
import tempfile

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

TRUST_DOMAIN = "cluster.local"
DAY = datetime.timedelta(days=1)

# Every fault that a peer's certificate can have; "none" is no certificate at all.
FAULTS = [
    "none",
    "other-root",
    "other-trust-domain",
    "expired",
    "not-yet-valid",
    "two-uris",
    "no-name",
    "dns-only",
    "not-spiffe",
    "wrong-usage",
]


class Authority:
    """Signs certificates: the lab's own authority, or one that nobody trusts."""

    def __init__(self, folder=None):
        if folder is None:
            self.key = ec.generate_private_key(ec.SECP256R1())
            # The same name as the lab's, so that nothing but the key tells them apart.
            self.name = x509.Name(
                [
                    x509.NameAttribute(NameOID.ORGANIZATION_NAME, TRUST_DOMAIN),
                    x509.NameAttribute(NameOID.COMMON_NAME, "Weir certificate authority"),
                ]
            )
            return
        folder = pathlib.Path(folder)
        self.key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        self.name = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes()).subject

    def issue(self, names, start=-1, end=1, usages=("client", "server")):
        """A certificate and its key, in PEM. `start` and `end` are days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.timezone.utc)
        oids = {
            "client": ExtendedKeyUsageOID.CLIENT_AUTH,
            "server": ExtendedKeyUsageOID.SERVER_AUTH,
            "code": ExtendedKeyUsageOID.CODE_SIGNING,
        }
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + start * DAY)
            .not_valid_after(now + end * DAY)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([oids[usage] for usage in usages]), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        certificate = builder.sign(self.key, hashes.SHA256())
        return (
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )


def make(ca, fault, identity):
    """A certificate for this identity (`shop/a`) with this fault, in PEM with its key; None for no certificate."""
    namespace, account = identity.split("/")
    uri = x509.UniformResourceIdentifier(f"spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{account}")
    foreign = x509.UniformResourceIdentifier(f"spiffe://other.local/ns/{namespace}/sa/{account}")
    plain = x509.UniformResourceIdentifier("https://cluster.local/shop/a")
    dns = x509.DNSName(f"{account}.{namespace}.svc.{TRUST_DOMAIN}")
    authority = Authority(ca)
    if fault == "none":
        return None
    if fault == "other-root":
        return Authority().issue([uri])
    if fault == "other-trust-domain":
        return authority.issue([foreign])
    if fault == "expired":
        return authority.issue([uri], start=-2, end=-1)
    if fault == "not-yet-valid":
        return authority.issue([uri], start=1, end=2)
    if fault == "two-uris":
        return authority.issue([uri, foreign])
    if fault == "no-name":
        return authority.issue([])
    if fault == "dns-only":
        return authority.issue([dns])
    if fault == "not-spiffe":
        return authority.issue([plain])
    if fault == "wrong-usage":
        return authority.issue([uri], usages=["code"])
    if fault == "good":
        # Names beside the URI are allowed, and ignored.
        return authority.issue([dns, uri])
    raise ValueError(fault)


def load(context, ca, fault, identity):
    """Gives a certificate with this fault to a TLS context."""
    made = make(ca, fault, identity)
    if made is None:
        return
    # `ssl` reads files alone.
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(made))
        file.flush()
        context.load_cert_chain(file.name)


def main():
    """Writes a good certificate and its key to files, for programs that read them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ca", required=True, help="folder of the lab's authority")
    parser.add_argument("--identity", required=True)
    parser.add_argument("--certificate", required=True)
    parser.add_argument("--key", required=True)
    arguments = parser.parse_args()
    certificate, key = make(arguments.ca, "good", arguments.identity)
    pathlib.Path(arguments.certificate).write_bytes(certificate)
    pathlib.Path(arguments.key).write_bytes(key)


if __name__ == "__main__":
    main()
