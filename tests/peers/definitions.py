"""Messages of `proto/protos`, for programs that share no code with ours."""

import pathlib
import sys
import tempfile

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_tools import protoc

PROTOS = pathlib.Path(__file__).resolve().parents[2] / "proto/protos"


def messages(*files):
    """Classes of the messages, by name. Generated modules would be called `envoy`, as a package of this environment is."""
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder) / "set"
        own = pathlib.Path(protoc.__file__).parent / "_proto"
        options = [f"-I{PROTOS}", f"-I{own}", "--include_imports", f"--descriptor_set_out={target}"]
        if protoc.main(["protoc", *options, *files]) != 0:
            sys.exit("the definitions are not understood")
        found = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    return message_factory.GetMessages(found.file, pool=descriptor_pool.DescriptorPool())
