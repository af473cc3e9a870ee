"""A client of other make of the flows that agents and relays serve: Python's gRPC, with messages from `proto/protos`.

Makes the calls that it is given, one after the other, and prints a line of JSON for each.
"""

import argparse
import itertools
import json
import pathlib
import resource
import threading

import grpc
from definitions import messages
from google.protobuf import json_format

# Seconds that a call may take which does not follow.
PATIENCE = 20

MESSAGES = messages("observer/observer.proto", "peer/peer.proto", "google/protobuf/struct.proto")
CALLS = {
    "flows": ("/observer.Observer/GetFlows", "observer.GetFlows", True),
    "status": ("/observer.Observer/ServerStatus", "observer.ServerStatus", False),
    "nodes": ("/observer.Observer/GetNodes", "observer.GetNodes", False),
    "namespaces": ("/observer.Observer/GetNamespaces", "observer.GetNamespaces", False),
}


def say(**values):
    # One write: threads must not tear lines.
    print(json.dumps(values) + "\n", end="", flush=True)


def plain(message):
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, descriptor_pool=message.DESCRIPTOR.file.pool
    )


def refusal(error):
    return {"code": error.code().name, "details": error.details()}


def health(channel, service):
    """`grpc.health.v1`: both messages are short enough to be written by hand."""
    ask = channel.unary_unary("/grpc.health.v1.Health/Check", lambda own: own, lambda own: own)
    name = service.encode()
    return list(ask(b"\x0a" + bytes([len(name)]) + name, timeout=PATIENCE))


def notify(channel, count):
    request = MESSAGES["peer.NotifyRequest"]()
    answer = MESSAGES["peer.ChangeNotification"]
    stream = channel.unary_stream("/peer.Peer/Notify", type(request).SerializeToString, answer.FromString)
    call = stream(request, timeout=PATIENCE)
    changes = [plain(change) for change in itertools.islice(call, count)]
    call.cancel()
    return changes


def call(channel, what, given, patient=False):
    """`given` is the request as protobuf's JSON, or its bytes in hexadecimal form."""
    path, name, many = CALLS[what]
    if isinstance(given, str):
        request = bytes.fromhex(given)
    else:
        request = json_format.ParseDict(given, MESSAGES[name + "Request"]()).SerializeToString()
    answer = MESSAGES[name + "Response"]
    make = channel.unary_stream if many else channel.unary_unary
    patience = None if name == "observer.GetFlows" and patient else PATIENCE
    return make(path, lambda own: own, answer.FromString)(request, timeout=patience)


def flows(channel, given, count=None):
    """All that is answered, or so many."""
    answer = call(channel, "flows", given)
    found = []
    for response in answer:
        found.append(plain(response))
        if len(found) == count:
            answer.cancel()
            break
        if count is not None:
            say(came=found[-1])
    return found


def large(channel, values, length):
    """A filter with so many values."""
    request = MESSAGES["observer.GetFlowsRequest"]()
    request.whitelist.add().uuid.extend(["x" * length] * values)
    answer = call(channel, "flows", request.SerializeToString().hex())
    return len(list(answer))


def crowd(arguments, count):
    """So many clients, each with a connection of its own and a stream that follows."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft))
    channels = [connect(arguments, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(count)]
    streams = [call(channel, "flows", {"follow": True}, patient=True) for channel in channels]
    # Headers come once the stream is open.
    opened = 0
    for stream in streams:
        try:
            stream.initial_metadata()
            opened += stream.is_active()
        except grpc.RpcError as error:
            say(trouble=refusal(error))
    say(opened=opened)
    threading.Event().wait(arguments.hold)
    for channel in channels:
        channel.close()
    return opened


def streams(channel, count):
    """So many streams that follow, on one connection: how many are open at once."""
    all_of_them = [call(channel, "flows", {"follow": True, "number": 1}) for _ in range(count)]
    heard = [next(stream) for stream in all_of_them[:count]]
    for stream in all_of_them:
        stream.cancel()
    return len(heard)


def unread(channel):
    """A stream that follows and is never read."""
    stream = call(channel, "flows", {"follow": True, "since": "1970-01-01T00:00:00Z"}, patient=True)
    stream.initial_metadata()
    say(opened=1)
    return stream


def connect(arguments, options=()):
    if not arguments.roots:
        # By itself this library names the socket's path, percent-encoded, which is no authority (RFC 3986, section 3.2).
        named = ("grpc.default_authority", "localhost")
        return grpc.insecure_channel(arguments.to, options=[named, *options])
    read = lambda path: pathlib.Path(path).read_bytes() if path else None
    credentials = grpc.ssl_channel_credentials(
        read(arguments.roots), read(arguments.key), read(arguments.certificate)
    )
    named = ("grpc.ssl_target_name_override", arguments.name)
    return grpc.secure_channel(arguments.to, credentials, options=[named, *options])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--to", required=True, help="unix:PATH or an address")
    parser.add_argument("--roots", help="file of the server's roots: TLS is spoken then")
    parser.add_argument("--certificate", help="file of the client's certificate")
    parser.add_argument("--key", help="file of its key")
    parser.add_argument("--name", help="name in the server's certificate")
    parser.add_argument("--hold", type=float, default=0, help="seconds for which a crowd stays")
    parser.add_argument("calls", nargs="+", help="[NAME, ARGUMENT...] in JSON")
    arguments = parser.parse_args()
    kept = []
    with connect(arguments) as channel:
        for text in arguments.calls:
            name, *rest = json.loads(text)
            try:
                if name in ("status", "nodes", "namespaces"):
                    answer = plain(call(channel, name, {}))
                elif name == "crowd":
                    answer = crowd(arguments, *rest)
                elif name == "unread":
                    kept.append(unread(channel))
                    answer = threading.Event().wait(arguments.hold)
                else:
                    answer = globals()[name](channel, *rest)
                say(answer=answer)
            except grpc.RpcError as error:
                say(refused=refusal(error))


main()
