"""HTTP/2 CONNECT over mutual TLS as a client, from `ssl` and `h2`: nothing of Weir's own code."""

import json
import pathlib
import socket
import ssl
import struct

import certificates
import h2.config
import h2.connection
import h2.events

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
ACK, END_HEADERS = 1, 4

# Far above what an answer takes on a busy machine.
PATIENCE = 30


def say(**fields):
    """One line of JSON on standard output."""
    # One write: threads must not tear lines.
    print(json.dumps(fields) + "\n", end="", flush=True)


def address(text):
    """`10.1.0.2:80` or `[fd00:1::2]:80` as a socket's address."""
    host, port = text.rsplit(":", 1)
    return host.strip("[]"), int(port)


def frame(kind, flags, stream, payload=b""):
    """A frame of RFC 9113, section 4.1."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def connect_block(authority):
    """A header block of literals without indexing (RFC 7541, section 6.2.2): CONNECT to this authority."""
    authority = authority.encode()
    return b"\x02\x07CONNECT" + b"\x01" + bytes([len(authority)]) + authority


def client_context(ca, fault="good", identity="shop/peer", alpn=("h2",), tls12=False):
    """A TLS context that trusts the lab's authority and presents a certificate with this fault."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(pathlib.Path(ca) / "ca.crt")
    if tls12:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    if alpn:
        context.set_alpn_protocols(list(alpn))
    certificates.load(context, ca, fault, identity)
    return context


def dial(to, source_port=0):
    """A TCP connection, from this port if one is given."""
    host, port = address(to)
    own = ("::" if ":" in host else "0.0.0.0", source_port) if source_port else None
    connection = socket.create_connection((host, port), PATIENCE, own)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def wrap(connection, context):
    """The TLS handshake."""
    return context.wrap_socket(connection)


class Client:
    """An HTTP/2 connection whose streams are TCP tunnels."""

    def __init__(self, tls, window=None):
        self.tls = tls
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding="utf-8",
            # Hostile requests must leave as they are.
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        if window is not None:
            self.h2.increment_flow_control_window(window)
        self.status, self.data, self.ended = {}, {}, {}
        self.flush()

    def flush(self):
        self.tls.sendall(self.h2.data_to_send())

    def request(self, headers):
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, headers)
        self.data[stream] = b""
        self.flush()
        return stream

    def connect(self, authority, *more):
        return self.request([(":method", "CONNECT"), (":authority", authority), *more])

    def send(self, stream, data, end=False):
        """Sends as much at a time as the peer's window lets it."""
        while data:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room == 0:
                self.step()
                continue
            self.h2.send_data(stream, data[:room])
            data = data[room:]
            self.flush()
        if end:
            self.h2.end_stream(stream)
            self.flush()

    def step(self, acknowledge=lambda stream: True):
        """Reads once. Gives the window back for streams that are acknowledged."""
        received = self.tls.recv(65536)
        if not received:
            raise ConnectionError("the connection ended")
        for event in self.h2.receive_data(received):
            stream = getattr(event, "stream_id", None)
            if isinstance(event, h2.events.ResponseReceived):
                self.status[stream] = int(dict(event.headers)[":status"])
            elif isinstance(event, h2.events.DataReceived):
                self.data[stream] += event.data
                if acknowledge(stream):
                    self.h2.acknowledge_received_data(event.flow_controlled_length, stream)
            elif isinstance(event, h2.events.StreamEnded):
                self.ended[stream] = "end"
            elif isinstance(event, h2.events.StreamReset):
                self.ended[stream] = f"reset {int(event.error_code)}"
            elif isinstance(event, h2.events.ConnectionTerminated):
                raise ConnectionError(f"goaway {int(event.error_code)}")
        self.flush()

    def answer(self, stream):
        """The status of the answer, or how the stream ended without one."""
        while stream not in self.status and stream not in self.ended:
            self.step()
        return self.status.get(stream, self.ended.get(stream))

    def read(self, stream, count, **how):
        """Reads this many bytes of a stream."""
        while len(self.data[stream]) < count:
            if stream in self.ended:
                raise ConnectionError(f"stream {stream}: {self.ended[stream]}")
            self.step(**how)
        taken, self.data[stream] = self.data[stream][:count], self.data[stream][count:]
        return taken

    def until_end(self, stream):
        """Reads a stream to its end."""
        while stream not in self.ended:
            self.step()
        return self.data[stream]


def open_client(to, ca, identity, source_port=0, **how):
    """An HTTP/2 connection with a good certificate."""
    return Client(wrap(dial(to, source_port), client_context(ca, identity=identity)), **how)
