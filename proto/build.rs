//! Compiles `protos/` without a system `protoc`.

use std::{env, error::Error, fs, path::Path};

use prost::Message as _;
use prost_types::FileDescriptorSet;

const FILES: [&str; 15] = [
    "envoy/service/discovery/v3/ads.proto",
    "istio/workload/workload.proto",
    "istio/security/authorization.proto",
    "istio/v1/auth/ca.proto",
    "flow/flow.proto",
    "observer/observer.proto",
    "peer/peer.proto",
    "relay/relay.proto",
    "weir/flow/v1/details.proto",
    "weir/flow/v1/explain.proto",
    "weir/flows/v1/certificates.proto",
    "weir/node/v1/about.proto",
    "weir/node/v1/pod.proto",
    "weir/node/v1/report.proto",
    "weir/node/v1/revocation.proto",
];

/// Gives `flow.FlowFilter` another name: the type that stands for it is made of what is generated for it. Gives its fields' numbers.
fn rename_filter(descriptors: &mut FileDescriptorSet) -> Result<Vec<i32>, Box<dyn Error>> {
    let mut files = descriptors.file.iter_mut();
    let file = files
        .find(|file| file.package() == "flow")
        .ok_or("no package flow")?;
    let mut messages = file.message_type.iter_mut();
    let filter = messages.find(|message| message.name() == "FlowFilter");
    let filter = filter.ok_or("no message FlowFilter")?;
    filter.name = Some("KnownFlowFilter".to_owned());
    for field in &mut filter.field {
        let nested = field.type_name().strip_prefix(".flow.FlowFilter.");
        field.type_name = match nested {
            Some(name) => Some(format!(".flow.KnownFlowFilter.{name}")),
            None => field.type_name.take(),
        };
    }
    Ok(filter.field.iter().map(|field| field.number()).collect())
}

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new("protos");
    println!("cargo::rerun-if-changed=protos");
    let transport = env::var_os("CARGO_FEATURE_TRANSPORT").is_some();
    let mut descriptors = protox::compile(FILES.map(|file| root.join(file)), [root])?;
    // For what must know fields by their names.
    let out = env::var("OUT_DIR")?;
    let out = Path::new(&out);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    let tags = rename_filter(&mut descriptors)?;
    fs::write(out.join("filter_tags.rs"), format!("&{tags:?}"))?;
    tonic_prost_build::configure()
        .build_transport(transport)
        .bytes(".")
        // A map's order is then its keys': equal messages have equal bytes, in every replica.
        .btree_map(".")
        // Its value is bytes that share their response's buffer; that of prost-types is a copy.
        .extern_path(".google.protobuf.Any", "crate::Any")
        // Knows which fields it did not understand.
        .extern_path(".flow.FlowFilter", "crate::FlowFilter")
        .include_file("generated.rs")
        .compile_fds(descriptors)?;
    Ok(())
}
