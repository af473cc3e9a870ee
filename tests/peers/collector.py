"""A collector of OpenTelemetry's data of other make: Python's gRPC, with the messages that PyPI's `opentelemetry-proto` has.

Prints a line of JSON for each log record and each span.
"""

import argparse
import json
import pathlib
import threading
from concurrent import futures

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

# Exports may come at once.
PRINT = threading.Lock()


def say(**values):
    with PRINT:
        print(json.dumps(values), flush=True)


def plain(attributes):
    return {own.key: getattr(own.value, own.value.WhichOneof("value")) for own in attributes}


def about(group, context):
    headers = {key: value for key, value in context.invocation_metadata() if key.startswith("x-")}
    return {"resource": plain(group.resource.attributes), "headers": headers}


class Logs(logs_service_pb2_grpc.LogsServiceServicer):
    def Export(self, request, context):
        for group in request.resource_logs:
            for own in (record for scope in group.scope_logs for record in scope.log_records):
                log = {
                    "body": own.body.string_value,
                    "event": own.event_name,
                    "severity": own.severity_text,
                    "trace": own.trace_id.hex(),
                    "span": own.span_id.hex(),
                    "attributes": plain(own.attributes),
                }
                say(log=log, **about(group, context))
        return logs_service_pb2.ExportLogsServiceResponse()


class Spans(trace_service_pb2_grpc.TraceServiceServicer):
    def Export(self, request, context):
        for group in request.resource_spans:
            for own in (span for scope in group.scope_spans for span in scope.spans):
                span = {
                    "kind": trace_pb2.Span.SpanKind.Name(own.kind),
                    "name": own.name,
                    "trace": own.trace_id.hex(),
                    "span": own.span_id.hex(),
                    "parent": own.parent_span_id.hex(),
                    "nanoseconds": own.end_time_unix_nano - own.start_time_unix_nano,
                    "status": trace_pb2.Status.StatusCode.Name(own.status.code),
                    "attributes": plain(own.attributes),
                }
                say(span=span, **about(group, context))
        return trace_service_pb2.ExportTraceServiceResponse()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True, help="address and port")
    parser.add_argument("--certificate", help="file of the certificate: TLS is spoken then")
    parser.add_argument("--key", help="file of its key")
    arguments = parser.parse_args()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(Logs(), server)
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Spans(), server)
    if arguments.certificate:
        pair = (pathlib.Path(arguments.key).read_bytes(), pathlib.Path(arguments.certificate).read_bytes())
        server.add_secure_port(arguments.listen, grpc.ssl_server_credentials([pair]))
    else:
        server.add_insecure_port(arguments.listen)
    server.start()
    say(listening=arguments.listen)
    server.wait_for_termination()


main()
