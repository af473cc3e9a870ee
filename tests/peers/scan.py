"""Connects to many ports of an address, one after the other, and says how that ended."""

import argparse
import collections
import errno
import json
import socket


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--first", type=int, required=True, help="first port")
    parser.add_argument("--count", type=int, required=True, help="number of ports")
    arguments = parser.parse_args()
    ends = collections.Counter()
    for port in range(arguments.first, arguments.first + arguments.count):
        connection = socket.socket()
        connection.settimeout(30)
        code = connection.connect_ex((arguments.address, port))
        if code == 0:
            # The agent accepts before it knows; then it resets.
            try:
                ends["eof" if connection.recv(1) == b"" else "data"] += 1
            except OSError as error:
                ends[errno.errorcode.get(error.errno, str(error))] += 1
        else:
            ends[errno.errorcode[code]] += 1
        connection.close()
    print(json.dumps({"ends": ends}))


main()
