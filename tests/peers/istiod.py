"""A control plane of other make, which knows what istiod knows and nothing of ours: Python's gRPC serves workloads, services
and policies by delta ADS, and certificates.

What it serves it reads from a file of JSON, again whenever that changes: `addresses` and `policies`, each an object of messages in
protobuf's JSON by the names of their resources; addresses are written as usual.
"""

import argparse
import base64
import datetime
import ipaddress
import json
import pathlib
import queue
import threading
import time
from concurrent import futures

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from definitions import messages
from google.protobuf import json_format

MESSAGES = messages(
    "envoy/service/discovery/v3/ads.proto",
    "istio/security/authorization.proto",
    "istio/v1/auth/ca.proto",
    "istio/workload/workload.proto",
)
URL = "type.googleapis.com/"
KINDS = {"istio.workload.Address": "addresses", "istio.security.Authorization": "policies"}
REQUEST = MESSAGES["envoy.service.discovery.v3.DeltaDiscoveryRequest"]
RESPONSE = MESSAGES["envoy.service.discovery.v3.DeltaDiscoveryResponse"]
ANY = MESSAGES["google.protobuf.Any"]
RESOURCE = MESSAGES["envoy.service.discovery.v3.Resource"]
CERTIFICATE_REQUEST = MESSAGES["istio.v1.auth.IstioCertificateRequest"]
CERTIFICATE_RESPONSE = MESSAGES["istio.v1.auth.IstioCertificateResponse"]
LOOK = 0.05
DAY = datetime.timedelta(days=1)
SKEW = datetime.timedelta(minutes=2)


def say(**values):
    # One write: threads must not tear lines.
    print(json.dumps(values) + "\n", end="", flush=True)


def bytewise(value):
    """Addresses as the JSON of protobuf has bytes."""
    if isinstance(value, dict):
        return {key: bytewise(own) for key, own in value.items()}
    if isinstance(value, list):
        return [bytewise(own) for own in value]
    try:
        return base64.b64encode(ipaddress.ip_address(value).packed).decode()
    except ValueError:
        return value


class State:
    """What is served, and who waits for changes of it."""

    def __init__(self, path):
        self.path = path
        self.changed = threading.Condition()
        self.resources = {kind: {} for kind in KINDS}
        self.text = None

    def follow(self):
        while True:
            text = self.path.read_text()
            if text != self.text:
                self.take(text)
            time.sleep(LOOK)

    def take(self, text):
        said = json.loads(text)
        with self.changed:
            self.text = text
            for kind, part in KINDS.items():
                self.resources[kind] = {
                    name: json_format.ParseDict(bytewise(one), MESSAGES[kind]()).SerializeToString()
                    for name, one in said.get(part, {}).items()
                }
            self.changed.notify_all()


class Authority:
    """A root that signs everything, as istiod's own."""

    def __init__(self):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "cluster.local")])
        builder = self.builder(self.key.public_key(), self.name, 3650 * DAY)
        self.root = builder.add_extension(x509.BasicConstraints(True, None), True).sign(self.key, hashes.SHA256())

    def builder(self, key, subject, lifetime):
        now = datetime.datetime.now(datetime.timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(now + lifetime)
        )

    def sign(self, key, name, lifetime):
        builder = self.builder(key, x509.Name([]), lifetime)
        builder = builder.add_extension(x509.SubjectAlternativeName([name]), True)
        builder = builder.add_extension(
            x509.KeyUsage(True, False, True, False, False, False, False, False, False), True
        )
        usages = [x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), False)
        builder = builder.add_extension(x509.BasicConstraints(False, None), True)
        return builder.sign(self.key, hashes.SHA256())


def pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def who(context, token):
    metadata = dict(context.invocation_metadata())
    if metadata.get("authorization") != f"Bearer {token}" or metadata.get("clusterid") != "Kubernetes":
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "authentication failure")


class Server:
    def __init__(self, state, authority, token):
        self.state, self.authority, self.token = state, authority, token

    def certificate(self, request, context):
        who(context, self.token)
        asked = request.metadata["ImpersonatedIdentity"]
        csr = x509.load_pem_x509_csr(request.csr.encode())
        if not csr.is_signature_valid:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "CSR sign failure")
        lifetime = datetime.timedelta(seconds=request.validity_duration)
        # As istiod does: for whom it is says the request, not the CSR.
        leaf = self.authority.sign(csr.public_key(), x509.UniformResourceIdentifier(asked), lifetime)
        say(certificate=asked)
        return CERTIFICATE_RESPONSE(cert_chain=[pem(leaf), pem(self.authority.root)])

    def discover(self, requests, context):
        who(context, self.token)
        out = queue.Queue()
        known = {}
        threading.Thread(target=self.listen, args=(requests, known, out), daemon=True).start()
        threading.Thread(target=self.watch, args=(known, out, context), daemon=True).start()
        while context.is_active():
            try:
                yield out.get(timeout=1)
            except queue.Empty:
                continue

    def listen(self, requests, known, out):
        first = True
        try:
            for request in requests:
                kind = request.type_url.removeprefix(URL)
                if first:
                    say(node=request.node.id, name=request.node.metadata["NODE_NAME"])
                    first = False
                if request.HasField("error_detail"):
                    say(nack=request.error_detail.message, type=kind)
                elif kind not in KINDS:
                    # It serves no such thing, and answers nothing.
                    say(unknown=kind)
                elif request.response_nonce:
                    say(ack=kind)
                else:
                    with self.state.changed:
                        known[kind] = dict(request.initial_resource_versions)
                        self.push(kind, known, out, first=True)
        except grpc.RpcError:
            pass

    def watch(self, known, out, context):
        while context.is_active():
            with self.state.changed:
                for kind in list(known):
                    self.push(kind, known, out)
                self.state.changed.wait(timeout=1)

    def push(self, kind, known, out, first=False):
        now = self.state.resources[kind]
        versions = {name: str(hash(body)) for name, body in now.items()}
        removed = [name for name in known[kind] if name not in versions]
        new = [name for name, version in versions.items() if known[kind].get(name) != version]
        if not (first or removed or new):
            return
        known[kind] = versions
        resources = [
            RESOURCE(name=name, version=versions[name], resource=ANY(type_url=URL + kind, value=now[name]))
            for name in new
        ]
        stamp = datetime.datetime.now(datetime.timezone.utc).isoformat()
        out.put(
            RESPONSE(
                type_url=URL + kind,
                resources=resources,
                removed_resources=removed,
                nonce=stamp,
                system_version_info=f"{stamp}/1",
            )
        )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=pathlib.Path, required=True)
    parser.add_argument("--roots", type=pathlib.Path, required=True)
    parser.add_argument("--token", required=True)
    options = parser.parse_args()
    authority = Authority()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    own = authority.sign(key.public_key(), name, DAY)
    encoding = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    credentials = grpc.ssl_server_credentials([(key.private_bytes(*encoding), pem(own).encode())])
    options.roots.write_text(pem(authority.root))
    state = State(options.state)
    state.take(options.state.read_text())
    served = Server(state, authority, options.token)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    handlers = {
        "envoy.service.discovery.v3.AggregatedDiscoveryService": {
            "DeltaAggregatedResources": grpc.stream_stream_rpc_method_handler(
                served.discover, REQUEST.FromString, RESPONSE.SerializeToString
            )
        },
        "istio.v1.auth.IstioCertificateService": {
            "CreateCertificate": grpc.unary_unary_rpc_method_handler(
                served.certificate, CERTIFICATE_REQUEST.FromString, CERTIFICATE_RESPONSE.SerializeToString
            )
        },
    }
    for service, methods in handlers.items():
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, methods)])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    say(listening=port)
    state.follow()


if __name__ == "__main__":
    main()
