"""An HBONE client that asks what it may and what it may not; prints a line of JSON for each."""

import argparse
import socket
import ssl

import certificates
import h2.exceptions
import hbone


def echo(arguments):
    """Good requests: bytes to the application and back, with and without the hint of the client's port."""
    for forwarded in arguments.forwarded:
        client = hbone.open_client(arguments.to, arguments.ca, arguments.identity)
        hints = [("forwarded", f'for="{forwarded}"')] if forwarded else []
        if arguments.traceparent:
            hints.append(("traceparent", arguments.traceparent))
        stream = client.connect(arguments.authority, *hints)
        status = client.answer(stream)
        payload = bytes(range(256)) * 1024
        client.send(stream, payload, end=True)
        intact = client.until_end(stream) == payload
        port = client.tls.getsockname()[1]
        hbone.say(forwarded=forwarded, status=status, intact=intact, port=port)


def handshake(arguments, name, source_port, **how):
    """Tries to get a request through; says how far it came."""
    said = {"fault": name, "port": source_port}
    try:
        context = hbone.client_context(arguments.ca, identity=arguments.identity, **how)
        tls = hbone.wrap(hbone.dial(arguments.to, source_port), context)
        client = hbone.Client(tls)
        status = client.answer(client.connect(arguments.authority))
        hbone.say(**said, status=status)
    # In TLS 1.3 the refusal comes after the client's own side of the handshake has ended.
    except ssl.SSLError as error:
        hbone.say(**said, refused=error.reason or str(error))
    except (ConnectionError, OSError) as error:
        hbone.say(**said, refused=type(error).__name__)


def handshakes(arguments):
    """Every fault of a certificate, and handshakes that are not as they must be."""
    ports = iter(range(arguments.first_port, 65536))
    for fault in certificates.FAULTS:
        handshake(arguments, fault, next(ports), fault=fault)
    handshake(arguments, "tls-1.2", next(ports), tls12=True)
    handshake(arguments, "no-alpn", next(ports), alpn=())
    handshake(arguments, "http/1.1", next(ports), alpn=("http/1.1",))
    handshake(arguments, "good", next(ports))


def requests(arguments):
    """Requests that are no plain CONNECT to the address that they were sent to."""
    host, port = arguments.authority.rsplit(":", 1)
    good = arguments.authority
    get = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", good)]
    extended = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "https"),
        (":path", "/"),
        (":authority", good),
    ]
    connect = lambda authority: [(":method", "CONNECT"), (":authority", authority)]
    table = {
        "get": get,
        "no authority": [(":method", "CONNECT")],
        "no port": connect(host),
        "port 0": connect(f"{host}:0"),
        "no number": connect(f"{host}:http"),
        "user": connect(f"root@{good}"),
        "mapped": connect(f"[::ffff:{host}]:{port}"),
        "other address": connect(f"{arguments.other}:{port}"),
        "loopback": connect(f"127.0.0.1:{port}"),
        "name": connect(f"localhost:{port}"),
        "closed port": connect(f"{host}:9"),
        "loop 15001": connect(f"{host}:15001"),
        "loop 15006": connect(f"{host}:15006"),
        "loop 15008": connect(f"{host}:15008"),
        "extended": extended,
    }
    for name, headers in table.items():
        client = hbone.open_client(arguments.to, arguments.ca, arguments.identity)
        try:
            answer = client.answer(client.request(headers))
        except ConnectionError as error:
            answer = str(error)
        # A request that is refused does not cost its neighbours the connection, unless HTTP/2 itself is broken.
        try:
            neighbour = client.answer(client.connect(good))
        except (OSError, h2.exceptions.ProtocolError):
            neighbour = None
        port = client.tls.getsockname()[1]
        hbone.say(request=name, answer=answer, neighbour=neighbour, port=port)


def garbage(arguments):
    """Bytes that are no TLS, and bytes in TLS that are no HTTP/2."""
    ports = iter(range(arguments.first_port, 65536))
    noise = bytes(range(255, 0, -1)) * 400
    for name in ["plain", "http", "in TLS"]:
        port = next(ports)
        connection = hbone.dial(arguments.to, port)
        if name == "in TLS":
            connection = hbone.wrap(connection, hbone.client_context(arguments.ca))
        sent = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" if name == "http" else noise
        try:
            connection.sendall(sent)
            while connection.recv(65536):
                pass
            end = "eof"
        except OSError as error:
            end = type(error).__name__
        hbone.say(garbage=name, port=port, end=end)


def stall(arguments):
    """Two tunnels on one connection: one is never read, the other goes on."""
    client = hbone.open_client(arguments.to, arguments.ca, arguments.identity, window=1 << 24)
    stalled = client.connect(arguments.authority)
    other = client.connect(arguments.authority)
    assert client.answer(stalled) == 200 and client.answer(other) == 200
    # Until the application's echo fills everything up to here, and this side's window to the application.
    sent, idle = 0, 0
    client.tls.settimeout(0.5)
    while idle < 2:
        room = min(client.h2.local_flow_control_window(stalled), 16384)
        if room:
            client.h2.send_data(stalled, bytes(room))
            client.flush()
            sent += room
            idle = 0
        else:
            try:
                client.step(acknowledge=lambda stream: stream != stalled)
            except (socket.timeout, ssl.SSLWantReadError):
                idle += 1
    client.tls.settimeout(hbone.PATIENCE)
    for round in range(arguments.rounds):
        payload = round.to_bytes(4, "big") * 256
        client.send(other, payload)
        assert client.read(other, 1024, acknowledge=lambda stream: stream != stalled) == payload
    hbone.say(stalled=sent, rounds=arguments.rounds)
    if arguments.hold:
        # The parent reads the line, looks around, and kills.
        client.tls.settimeout(None)
        client.until_end(stalled)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["echo", "handshakes", "requests", "garbage", "stall"])
    parser.add_argument("--to", required=True, help="address and port of the server")
    parser.add_argument("--ca", required=True, help="folder of the lab's authority")
    parser.add_argument("--authority", default="")
    parser.add_argument("--identity", default="shop/peer")
    parser.add_argument("--other", help="another address")
    parser.add_argument("--forwarded", nargs="*", default=[""])
    parser.add_argument("--traceparent", help="what echo sends with each request")
    parser.add_argument("--first-port", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--hold", action="store_true")
    arguments = parser.parse_args()
    globals()[arguments.what](arguments)


main()
