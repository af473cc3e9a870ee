"""An agent of other make: Python's gRPC, with messages from `proto/protos`, asks the control plane for what agents ask for.

Prints a line of JSON for each thing that it was told. Where it waits for a change of the cluster, the line before says so.
"""

import argparse
import datetime
import ipaddress
import json
import pathlib
import queue
import sys

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import verification
from definitions import messages

DISCOVERY = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
CERTIFICATES = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
URL = "type.googleapis.com/"
ADDRESS = "istio.workload.Address"
AUTHORIZATION = "istio.security.Authorization"
# Seconds that an answer may take.
PATIENCE = 8
HOUR = 3600
MONTH = 30 * 24 * HOUR
# Types that one stream may ask for in vain.
UNKNOWN = 16


MESSAGES = messages(
    "envoy/service/discovery/v3/ads.proto",
    "istio/security/authorization.proto",
    "istio/v1/auth/ca.proto",
    "istio/workload/workload.proto",
)
REQUEST = MESSAGES["envoy.service.discovery.v3.DeltaDiscoveryRequest"]
RESPONSE = MESSAGES["envoy.service.discovery.v3.DeltaDiscoveryResponse"]
CERTIFICATE_REQUEST = MESSAGES["istio.v1.auth.IstioCertificateRequest"]
CERTIFICATE_RESPONSE = MESSAGES["istio.v1.auth.IstioCertificateResponse"]


def say(**values):
    # One write: threads must not tear lines.
    print(json.dumps(values) + "\n", end="", flush=True)


def bearer(token):
    return [("authorization", f"Bearer {token}")]


def refusal(error):
    """All that a client is told when it is refused, but for the date."""
    trailing = sorted([key, str(value)] for key, value in error.trailing_metadata() or [] if key != "date")
    return {"code": error.code().name, "details": error.details(), "trailing": trailing}


def content(resource):
    """What a resource says, as far as tests look at it."""
    said = {"version": resource.version, "aliases": sorted(resource.aliases)}
    kind = resource.resource.type_url.removeprefix(URL)
    message = MESSAGES[kind]()
    assert resource.resource.Unpack(message), kind
    if kind == AUTHORIZATION:
        return said | {"kind": kind, "name": message.name, "namespace": message.namespace}
    which = message.WhichOneof("type")
    said |= {"kind": which, "name": getattr(message, which).name}
    if which == "service":
        addresses = [entry.address for entry in message.service.addresses]
    else:
        addresses = message.workload.addresses
        said |= {
            "node": message.workload.node,
            "tunnel": message.workload.tunnel_protocol,
            "policies": list(message.workload.authorization_policies),
        }
    return said | {"addresses": [str(ipaddress.ip_address(address)) for address in addresses]}


class Stream:
    """One stream of delta ADS."""

    def __init__(self, channel, metadata):
        self.requests = queue.Queue()
        call = channel.stream_stream(DISCOVERY, REQUEST.SerializeToString, RESPONSE.FromString)
        self.responses = call(iter(self.requests.get, None), metadata=metadata, timeout=2 * PATIENCE)
        self.markers = 0

    def ask(self, kind=ADDRESS, subscribe=(), unsubscribe=(), known=None, nonce="", error=None):
        request = REQUEST(
            type_url=URL + kind,
            resource_names_subscribe=subscribe,
            resource_names_unsubscribe=unsubscribe,
            initial_resource_versions=known or {},
            response_nonce=nonce,
        )
        if error:
            request.error_detail.code = grpc.StatusCode.INVALID_ARGUMENT.value[0]
            request.error_detail.message = error
        self.requests.put(request)

    def hear(self, ack=True):
        """The next response."""
        response = next(self.responses)
        kind = response.type_url.removeprefix(URL)
        if ack:
            self.ask(kind, nonce=response.nonce)
        resources = {resource.name: content(resource) for resource in response.resources}
        removed = sorted(response.removed_resources)
        return {"type": kind, "nonce": response.nonce, "resources": resources, "removed": removed}

    def marker(self):
        """Asks for what there is not. Requests are answered in order, so the next response is this one's, unless there was
        something else to say."""
        self.markers += 1
        self.ask(subscribe=[f"marker-{self.markers}"])
        return self.hear()

    def until(self, done):
        """Responses until they come to this, put together."""
        resources, removed = {}, []
        while not done(resources, removed):
            response = self.hear()
            removed = [name for name in removed if name not in response["resources"]] + response["removed"]
            resources |= response["resources"]
            resources = {name: said for name, said in resources.items() if name not in response["removed"]}
        return {"resources": resources, "removed": sorted(removed)}

    def close(self):
        """Says that there are no more requests, and waits until the server ends too."""
        self.requests.put(None)
        for _ in self.responses:
            pass


def discovery(arguments, channel, metadata):
    """Everything, by name and by address; then a change of both pods; then the removal of the second."""
    first, second, alias = arguments.first, arguments.second, arguments.alias
    everything = Stream(channel, metadata)
    everything.ask()
    wildcard = everything.hear()
    say(wildcard=wildcard)
    some = Stream(channel, metadata)
    some.ask(subscribe=[first, alias, "nobody"])
    say(some=some.hear())
    some.ask(unsubscribe=[first])
    say(unsubscribed=some.marker())
    change = everything.until(lambda resources, _: {first, second} <= resources.keys())
    say(change=change, some_change=[some.hear(), some.marker()])
    everything.close()

    versions = {name: said["version"] for name, said in (wildcard["resources"] | change["resources"]).items()}
    resumed = Stream(channel, metadata)
    resumed.ask(known=versions)
    say(resumed=resumed.hear())
    resumed.close()
    outdated = Stream(channel, metadata)
    outdated.ask(known=versions | {first: "0", "gone": "0"})
    say(outdated=outdated.hear())
    gone = lambda _, removed: second in removed
    say(gone=outdated.until(gone), some_gone=[some.until(gone), some.marker()])


def answers(arguments, channel, metadata):
    """Accepts, rejects, and answers what nobody asked; a change of two pods comes between."""
    stream = Stream(channel, metadata)
    stream.ask()
    first = stream.hear(ack=False)
    stream.ask(nonce=first["nonce"], error="not to my taste")
    say(rejected=first, after=stream.marker())
    change = stream.hear(ack=False)
    # These answer nothing, but what they subscribe to counts, once the change is accepted.
    stream.ask(nonce=first["nonce"], subscribe=["stale"])
    stream.ask(nonce=first["nonce"], error="again")
    stream.ask(nonce="made-up", subscribe=["made-up"])
    stream.ask(AUTHORIZATION)
    meanwhile = stream.hear()
    stream.ask(nonce=change["nonce"])
    say(change=change, meanwhile=meanwhile, accepted=stream.hear())

    unknown = Stream(channel, metadata)
    for _ in range(3):
        for number in range(UNKNOWN):
            unknown.ask(f"envoy.config.cluster.v3.Cluster{number}")
    unknown.ask(subscribe=["nobody"])
    say(beside=unknown.hear())
    unknown.ask("envoy.config.cluster.v3.Cluster")
    try:
        say(ended=unknown.hear())
    except grpc.RpcError as error:
        say(ended=refusal(error))
    say(others=stream.marker())


def strangers(arguments, channel, metadata):
    """Asks both services with each token that it is given, and last with its own."""
    callers = {"none": [], "not bearer": [("authorization", metadata[0][1].replace("Bearer", "Basic"))]}
    for token in arguments.tokens:
        callers[pathlib.Path(token).name] = bearer(pathlib.Path(token).read_text())
    callers["own"] = metadata
    sign = channel.unary_unary(
        CERTIFICATES, CERTIFICATE_REQUEST.SerializeToString, CERTIFICATE_RESPONSE.FromString
    )
    for caller, shown in callers.items():
        stream = Stream(channel, shown)
        stream.ask()
        request = wish(arguments.own, csr(ec.generate_private_key(ec.SECP256R1()), [arguments.own]))
        for service, ask in {
            "discovery": lambda: len(stream.hear()["resources"]),
            "certificates": lambda: len(sign(request, metadata=shown, timeout=PATIENCE).cert_chain),
        }.items():
            try:
                say(caller=caller, service=service, answer=ask())
            except grpc.RpcError as error:
                say(caller=caller, service=service, refused=refusal(error))


def csr(key, uris, dns=(), authority=False, broken=False):
    """A request in PEM. A broken one is not signed by its key."""
    names = [x509.UniformResourceIdentifier(uri) for uri in uris] + [x509.DNSName(name) for name in dns]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    if authority:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    request = builder.sign(key, hashes.SHA256())
    if broken:
        other = ec.generate_private_key(ec.SECP256R1())
        own, others = [
            one.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
            for one in (key.public_key(), other.public_key())
        ]
        der = request.public_bytes(serialization.Encoding.DER).replace(own, others)
        request = x509.load_der_x509_csr(der)
    return request.public_bytes(serialization.Encoding.PEM).decode()


def wish(identity, request, lifetime=MONTH):
    message = CERTIFICATE_REQUEST(csr=request, validity_duration=lifetime)
    if identity:
        message.metadata["ImpersonatedIdentity"] = identity
    return message


def verified(answer, roots, key):
    """What a chain is good for, by verification that shares nothing with ours."""
    *chain, last = [x509.load_pem_x509_certificates(element.encode()) for element in answer.cert_chain]
    leaf, *between = [certificate for element in chain for certificate in element]
    verifier = verification.PolicyBuilder().store(verification.Store(roots)).build_client_verifier()
    found = verifier.verify(leaf, between)
    now = datetime.datetime.now(datetime.timezone.utc)
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    return {
        "subjects": [[type(name).__name__, name.value] for name in found.subjects or []],
        "own_key": leaf.public_key() == key.public_key(),
        "left": (leaf.not_valid_after_utc - now).total_seconds(),
        "began": (now - leaf.not_valid_before_utc).total_seconds(),
        "usages": sorted(usage._name for usage in usages),
        "roots": {root.fingerprint(hashes.SHA256()) for root in last}
        == {root.fingerprint(hashes.SHA256()) for root in roots},
    }


def certificates(arguments, channel, metadata):
    """Asks for what it may have, and at once for all that it may not."""
    own, foreign = arguments.own, dict(pair.split("=", 1) for pair in arguments.foreign)
    roots = x509.load_pem_x509_certificates(pathlib.Path(arguments.roots).read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    good = csr(key, [own])
    other = own + "-other"
    wishes = {
        "a month": wish(own, good),
        "an hour": wish(own, good, HOUR),
        "nobody named": wish(None, good),
        "another URI": wish(own, csr(key, [other])),
        "two URIs": wish(own, csr(key, [own, other])),
        "a DNS name": wish(own, csr(key, [], ["api.shop.svc.cluster.local"])),
        "a URI and a DNS name": wish(own, csr(key, [own], ["api.shop.svc.cluster.local"])),
        "an authority": wish(own, csr(key, [own], authority=True)),
        "another's key": wish(own, csr(key, [own], broken=True)),
        "RSA-1024": wish(own, csr(rsa.generate_private_key(65537, 1024), [own])),
        "secp256k1": wish(own, csr(ec.generate_private_key(ec.SECP256K1()), [own])),
        "P-521": wish(own, csr(ec.generate_private_key(ec.SECP521R1()), [own])),
        "no request": wish(own, "nonsense"),
    }
    wishes |= {name: wish(identity, csr(key, [identity])) for name, identity in foreign.items()}
    sign = channel.unary_unary(
        CERTIFICATES, CERTIFICATE_REQUEST.SerializeToString, CERTIFICATE_RESPONSE.FromString
    )
    # At once, since it is waited a while for a pod that may be about to be known.
    calls = {name: sign.future(one, metadata=metadata, timeout=PATIENCE) for name, one in wishes.items()}
    for name, call in calls.items():
        try:
            say(wish=name, issued=verified(call.result(), roots, key))
        except grpc.RpcError as error:
            say(wish=name, refused=refusal(error))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["discovery", "answers", "strangers", "certificates"])
    parser.add_argument("--to", required=True, help="address of the control plane")
    parser.add_argument("--roots", required=True, help="file of the roots")
    parser.add_argument("--token", required=True, help="file of an agent's token")
    parser.add_argument("--tokens", nargs="*", help="files of tokens that are none of an agent's")
    parser.add_argument("--first", help="resource name of a pod")
    parser.add_argument("--second", help="resource name of another")
    parser.add_argument("--alias", help="the second's address, as a resource name")
    parser.add_argument("--own", help="identity of a pod on the token's node")
    parser.add_argument("--foreign", nargs="*", help="NAME=IDENTITY, of pods that are not")
    arguments = parser.parse_args()
    roots = grpc.ssl_channel_credentials(pathlib.Path(arguments.roots).read_bytes())
    metadata = bearer(pathlib.Path(arguments.token).read_text())
    with grpc.secure_channel(arguments.to, roots) as channel:
        globals()[arguments.what](arguments, channel, metadata)


main()
