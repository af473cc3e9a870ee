//! Compiles `protos/` without a system `protoc`.

use std::{env, error::Error, path::Path};

const FILES: [&str; 7] = [
    "envoy/service/discovery/v3/ads.proto",
    "istio/workload/workload.proto",
    "istio/security/authorization.proto",
    "istio/v1/auth/ca.proto",
    "weir/node/v1/pod.proto",
    "weir/node/v1/report.proto",
    "weir/node/v1/revocation.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new("protos");
    println!("cargo::rerun-if-changed=protos");
    let transport = env::var_os("CARGO_FEATURE_TRANSPORT").is_some();
    let descriptors = protox::compile(FILES.map(|file| root.join(file)), [root])?;
    tonic_prost_build::configure()
        .build_transport(transport)
        .bytes(".")
        // A map's order is then its keys': equal messages have equal bytes, in every replica.
        .btree_map(".")
        // Its value is bytes that share their response's buffer; that of prost-types is a copy.
        .extern_path(".google.protobuf.Any", "crate::Any")
        .include_file("generated.rs")
        .compile_fds(descriptors)?;
    Ok(())
}
