"""Speaks delta ADS with the reference gRPC implementation and prints what it is told, a JSON object a response."""

import json
import queue
import sys

import grpc

from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from istio.workload import workload_pb2

ADDRESS = "type.googleapis.com/istio.workload.Address"

requests = queue.Queue()


def request(**fields):
    requests.put(discovery_pb2.DeltaDiscoveryRequest(type_url=ADDRESS, **fields))


def tell(response):
    resources = {}
    for resource in response.resources:
        address = workload_pb2.Address()
        assert resource.resource.Unpack(address), resource.resource.type_url
        resources[resource.name] = address.workload.node
    print(json.dumps({"resources": resources, "removed": list(response.removed_resources)}), flush=True)


channel = grpc.insecure_channel(sys.argv[1])
stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
responses = stub.DeltaAggregatedResources(iter(requests.get, None), metadata=[("node", "n1")])
request()
try:
    for number, response in enumerate(responses):
        tell(response)
        asked = ["/10.0.0.1", "nobody"] if number == 0 else []
        request(response_nonce=response.nonce, resource_names_subscribe=asked)
    print(json.dumps("end"), flush=True)
except grpc.RpcError as error:
    print(json.dumps(error.code().name), flush=True)
requests.put(None)
