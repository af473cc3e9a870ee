"""An HBONE server on port 15008 that behaves, or misbehaves, in one way; prints what it was asked."""

import argparse
import socket
import ssl
import threading

import certificates
import h2.config
import h2.connection
import h2.errors
import h2.events
import hbone

PORT = 15008


class Tunnels:
    """One HTTP/2 connection of a client."""

    def __init__(self, tls, mode):
        self.tls, self.mode = tls, mode
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.pending, self.ended = {}, set()

    def flush(self):
        self.tls.sendall(self.h2.data_to_send())

    def run(self):
        self.flush()
        while received := self.tls.recv(65536):
            for event in self.h2.receive_data(received):
                self.handle(event)
            self.flush()

    def handle(self, event):
        if isinstance(event, h2.events.RequestReceived):
            self.request(event.stream_id, dict(event.headers))
        elif isinstance(event, h2.events.DataReceived):
            self.data(event)
        elif isinstance(event, h2.events.WindowUpdated):
            for stream in list(self.pending):
                self.echo(stream)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.add(event.stream_id)
            self.echo(event.stream_id)

    def request(self, stream, headers):
        names = self.tls.getpeercert() or {}
        uris = [name for kind, name in names.get("subjectAltName", ()) if kind == "URI"]
        hbone.say(request=headers, peer=uris, address=self.tls.getpeername()[0])
        self.pending[stream] = b""
        if self.mode.isdigit():
            self.h2.send_headers(stream, [(":status", self.mode)], end_stream=True)
        elif self.mode == "goaway":
            self.h2.close_connection(last_stream_id=0)
        elif self.mode == "hang-up":
            self.flush()
            self.tls.shutdown(socket.SHUT_RDWR)
        elif self.mode != "no-answer":
            self.h2.send_headers(stream, [(":status", "200")])
        if self.mode == "deaf":
            self.flush()
            threading.Event().wait()

    def data(self, event):
        stream = event.stream_id
        if self.mode == "reset":
            self.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        elif self.mode == "noise":
            self.tls.sendall(b"\xff" * 1000)
        else:
            self.h2.acknowledge_received_data(event.flow_controlled_length, stream)
            self.pending[stream] += event.data
            self.echo(stream)

    def echo(self, stream):
        """Sends back as much as the client's window lets it."""
        data = self.pending.get(stream, b"")
        while data:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room == 0:
                break
            self.h2.send_data(stream, data[:room])
            data = data[room:]
        self.pending[stream] = data
        if not data and stream in self.ended:
            self.h2.end_stream(stream)
            self.ended.discard(stream)


def serve(connection, context, mode):
    if mode == "no-handshake":
        threading.Event().wait()
    if mode == "no-tls":
        connection.sendall(b"220 mail.example ESMTP\r\n" * 10)
        connection.recv(65536)
        connection.close()
        return
    try:
        Tunnels(context.wrap_socket(connection, server_side=True), mode).run()
    except (OSError, ssl.SSLError) as error:
        hbone.say(ended=getattr(error, "reason", None) or str(error))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ca", required=True, help="folder of the lab's authority")
    parser.add_argument("--identity", default="shop/peer")
    parser.add_argument("--fault", default="good", help="of the certificate")
    parser.add_argument(
        "--mode",
        default="echo",
        help="echo, a status, reset, goaway, hang-up, no-answer, deaf, noise, no-handshake or no-tls",
    )
    parser.add_argument("--ask-nothing", action="store_true", help="accept clients without a certificate")
    arguments = parser.parse_args()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_verify_locations(f"{arguments.ca}/ca.crt")
    context.verify_mode = ssl.CERT_NONE if arguments.ask_nothing else ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    certificates.load(context, arguments.ca, arguments.fault, arguments.identity)
    listener = socket.create_server(("0.0.0.0", PORT), backlog=128)
    hbone.say(listening=f"0.0.0.0:{PORT}")
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection, context, arguments.mode), daemon=True).start()


main()
