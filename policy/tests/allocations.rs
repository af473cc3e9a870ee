//! A decision does not allocate: counted by an allocator that does nothing else.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    collections::BTreeMap,
};

use weir_policy::{AuthorizationPolicy, PeerAuthentication, Policies, Request, Verdict};
use weir_types::Identity;

thread_local! {
    /// Of this thread: the test's harness has others.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: all calls go to `System` as they came, and counting does not allocate: the counter is initialized at
// compile time and has no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is the one that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer is from `System`, and the caller's promise is the one that it asks for.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const POLICIES: &str = r#"
- { name: deny-1, namespace: shop, action: DENY, rules: [{ from: [{ source: { principals: ["*/sa/evil", "bad.domain/*", "cluster.local/ns/bank/sa/thief"] } }] }] }
- { name: deny-2, namespace: root, action: DENY, rules: [{ from: [{ source: { ipBlocks: [192.168.0.0/16, "fe80::/10", "2001:db8::/32"] } }] }] }
- { name: deny-3, namespace: shop, action: DENY, rules: [{ from: [{ source: { notNamespaces: [shop, "bank*", "*-dev"] } }] }] }
- { name: allow-1, namespace: shop, rules: [{ from: [{ source: { serviceAccounts: [cart] } }, { source: { namespaces: ["ba*"] } }], to: [{ operation: { ports: ["80"] } }] }] }
- { name: allow-2, namespace: shop, selector: {}, rules: [{ when: [{ key: destination.ip, values: [10.0.0.0/8], notValues: [10.0.0.9] }] }] }
- { name: dry-1, namespace: shop, dryRun: true, action: DENY, rules: [{ to: [{ operation: { ports: ["81"] } }] }] }
- { name: dry-2, namespace: shop, dryRun: true, rules: [{ to: [{ operation: { ports: ["82"] } }] }] }
"#;

const PEERS: &str = r#"
- { name: strict, namespace: shop, mtls: { mode: STRICT } }
- { name: web, namespace: shop, selector: { matchLabels: { app: web } }, portLevelMtls: { 80: { mode: PERMISSIVE } } }
"#;

#[test]
fn a_decision_does_not_allocate() {
    let policies: Vec<AuthorizationPolicy> = serde_saphyr::from_str(POLICIES).unwrap();
    let peers: Vec<PeerAuthentication> = serde_saphyr::from_str(PEERS).unwrap();
    let policies = policies.iter().map(|policy| policy.compile("root").unwrap().0);
    let policies = Policies::new("root", policies.collect(), &peers).unwrap();
    let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
    let workload = policies.for_workload("shop", &labels);

    let longest = format!(
        "spiffe://{}/ns/{}/sa/{}",
        "d".repeat(255),
        "n".repeat(63),
        "s".repeat(253)
    );
    let identities = ["shop/sa/cart", "bank/sa/teller", "bank/sa/evil", "x-dev/sa/a"];
    let identities = identities.map(|rest| format!("spiffe://cluster.local/ns/{rest}"));
    let identities = identities
        .iter()
        .chain([&longest])
        .map(|text| Some(text.parse::<Identity>().unwrap()));
    let identities: Vec<_> = identities.chain([None]).collect();
    let addresses = [
        "10.0.0.1",
        "10.0.0.9",
        "192.168.1.1",
        "::ffff:192.168.1.1",
        "fe80::1",
        "fd00::1",
    ];
    let addresses = addresses.map(|address| address.parse().unwrap());

    let (mut allowed, mut denied, mut dry_run) = (0, 0, 0);
    for source in &identities {
        for source_ip in addresses {
            for destination_ip in addresses {
                for destination_port in [80, 81, 82] {
                    let request = Request {
                        source: source.as_ref(),
                        source_ip,
                        destination_ip,
                        destination_port,
                    };
                    let before = ALLOCATIONS.get();
                    let decision = workload.decide(&request);
                    let after = ALLOCATIONS.get();
                    assert_eq!(after - before, 0, "{request:?}");
                    match decision.verdict {
                        Verdict::Allowed(_) => allowed += 1,
                        Verdict::Denied(_) => denied += 1,
                    }
                    dry_run += u32::from(decision.dry_run.is_some());
                }
            }
        }
    }
    assert!(
        allowed > 0 && denied > 0 && dry_run > 0,
        "{allowed} {denied} {dry_run}"
    );
    let before = ALLOCATIONS.get();
    drop(Box::new(before));
    assert_eq!(ALLOCATIONS.get() - before, 1, "allocations are counted");
}
