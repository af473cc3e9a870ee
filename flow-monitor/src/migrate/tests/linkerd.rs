use super::{Outcome, Row, check, migrated, migrated_with, outcomes, said};

const IP: &str = "10.1.0.1";

fn object(kind: &str, name: &str, spec: &str) -> String {
    let version = match kind {
        "Server" => "v1beta3",
        "ServerAuthorization" => "v1beta1",
        _ => "v1alpha1",
    };
    format!(
        "---\n{{apiVersion: policy.linkerd.io/{version}, kind: {kind}, metadata: {{name: {name}, namespace: shop, labels: {{of: {name}}}}}, spec: {spec}}}\n"
    )
}

fn server(name: &str, app: &str, port: &str) -> String {
    object(
        "Server",
        name,
        &format!("{{podSelector: {{matchLabels: {{app: {app}}}}}, port: {port}}}"),
    )
}

fn policy(name: &str, target: &str, refs: &str) -> String {
    object(
        "AuthorizationPolicy",
        name,
        &format!("{{targetRef: {target}, requiredAuthenticationRefs: [{refs}]}}"),
    )
}

fn mesh(name: &str, spec: &str) -> String {
    object("MeshTLSAuthentication", name, spec)
}

const API: &str = "{group: policy.linkerd.io, kind: Server, name: api}";
const WEB: &str = "{identities: [web.shop.serviceaccount.identity.linkerd.cluster.local]}";

fn of(kind: &str, name: &str) -> String {
    format!("{{group: policy.linkerd.io, kind: {kind}, name: {name}}}")
}

#[test]
fn a_servers_port_is_closed_to_all_but_whom_it_lets_in_and_no_other_port_is() {
    let server = server("api", "api", "80");
    let web = mesh("web", WEB);
    let networks = object(
        "NetworkAuthentication",
        "near",
        "{networks: [{cidr: 10.1.0.0/16, except: [10.1.9.0/24]}, {cidr: 192.168.0.1}]}",
    );
    let web_only = format!("{web}{}", policy("p", API, &of("MeshTLSAuthentication", "web")));
    let near_only = format!(
        "{networks}{}",
        policy("n", API, &of("NetworkAuthentication", "near"))
    );
    let table: Vec<(String, &[Row])> = vec![
        (
            String::new(),
            &[
                ("shop/web", IP, "shop/api", 80, false, false),
                ("shop/web", IP, "shop/api", 81, true, true),
                ("-", IP, "shop/db", 80, true, true),
                ("-", IP, "other/api", 80, true, true),
            ],
        ),
        (
            web_only.clone(),
            &[
                ("shop/web", IP, "shop/api", 80, true, true),
                ("shop/job", IP, "shop/api", 80, false, false),
                ("-", IP, "shop/api", 80, false, false),
                ("-", IP, "shop/api", 81, true, true),
            ],
        ),
        (
            near_only.clone(),
            &[
                ("-", IP, "shop/api", 80, true, true),
                ("-", "10.1.9.1", "shop/api", 80, false, false),
                ("-", "192.168.0.1", "shop/api", 80, true, true),
                ("shop/web", "192.168.0.2", "shop/api", 80, false, false),
                ("shop/web", "fd00::1", "shop/api", 80, false, false),
                ("shop/web", "192.168.0.2", "shop/api", 81, true, true),
            ],
        ),
        // Either of two policies.
        (
            format!("{web_only}{near_only}"),
            &[
                ("shop/web", "8.8.8.8", "shop/api", 80, true, true),
                ("shop/job", "8.8.8.8", "shop/api", 80, false, false),
                ("-", "8.8.8.8", "shop/api", 80, false, false),
                ("shop/job", IP, "shop/api", 80, true, true),
                ("-", IP, "shop/api", 80, true, true),
                ("-", "10.1.9.1", "shop/api", 80, false, false),
                ("shop/web", "10.1.9.1", "shop/api", 80, true, true),
            ],
        ),
        // Both of one policy.
        (
            format!(
                "{web}{networks}{}",
                policy(
                    "b",
                    API,
                    &format!(
                        "{}, {}",
                        of("MeshTLSAuthentication", "web"),
                        of("NetworkAuthentication", "near")
                    )
                )
            ),
            &[
                ("shop/web", IP, "shop/api", 80, true, true),
                ("shop/web", "8.8.8.8", "shop/api", 80, false, false),
                ("shop/job", IP, "shop/api", 80, false, false),
                ("-", IP, "shop/api", 80, false, false),
            ],
        ),
        // Nothing is required: anybody.
        (policy("any", API, ""), &[("-", IP, "shop/api", 80, true, true)]),
        // What is required is not there: nobody.
        (
            policy("gone", API, &of("MeshTLSAuthentication", "gone")),
            &[("shop/web", IP, "shop/api", 80, false, false)],
        ),
        (
            format!(
                "{web}{}",
                policy(
                    "two",
                    API,
                    &format!("{0}, {0}", of("MeshTLSAuthentication", "web"))
                )
            ),
            &[("shop/web", IP, "shop/api", 80, false, false)],
        ),
        (
            policy(
                "sa",
                "{kind: Namespace, name: shop}",
                "{kind: ServiceAccount, name: job, namespace: batch}",
            ),
            &[
                ("batch/job", IP, "shop/api", 80, true, true),
                ("shop/job", IP, "shop/api", 80, false, false),
            ],
        ),
    ];
    for (objects, rows) in table {
        let report = migrated(&format!("{server}{objects}"));
        check(&report, rows);
    }
}

#[test]
fn several_servers_of_one_pod_do_not_open_each_others_ports() {
    let report = migrated(&format!(
        "{}{}{}{}{}{}",
        server("api", "api", "80"),
        server("admin", "api", "81"),
        mesh("web", WEB),
        mesh("ops", "{identityRefs: [{kind: Namespace, name: ops}]}"),
        policy("a", API, &of("MeshTLSAuthentication", "web")),
        policy(
            "b",
            "{kind: Server, name: admin}",
            &of("MeshTLSAuthentication", "ops")
        ),
    ));
    check(
        &report,
        &[
            ("shop/web", IP, "shop/api", 80, true, true),
            ("shop/web", IP, "shop/api", 81, false, false),
            ("ops/x", IP, "shop/api", 80, false, false),
            ("ops/x", IP, "shop/api", 81, true, true),
            ("-", IP, "shop/api", 80, false, false),
            ("-", IP, "shop/api", 81, false, false),
            ("-", IP, "shop/api", 82, true, true),
        ],
    );
    let made: Vec<_> = report
        .made
        .iter()
        .map(|made| &made.object["spec"]["action"])
        .collect();
    assert_eq!(
        made,
        ["DENY", "DENY"],
        "ALLOW would close the other ports, or open them"
    );
}

#[test]
fn identities_are_those_of_service_accounts() {
    let end = "serviceaccount.identity.linkerd.cluster.local";
    let table: Vec<(String, bool, &[Row])> = vec![
        (
            "{identities: ['*']}".to_owned(),
            true,
            &[("a/b", IP, "shop/api", 80, true, true), ("-", IP, "shop/api", 80, false, false)],
        ),
        (
            format!("{{identities: ['*.shop.{end}']}}"),
            true,
            &[("shop/x.y", IP, "shop/api", 80, true, true), ("shops/x", IP, "shop/api", 80, false, false)],
        ),
        (
            format!("{{identities: ['*.{end}']}}"),
            true,
            &[("a/b", IP, "shop/api", 80, true, true), ("-", IP, "shop/api", 80, false, false)],
        ),
        (
            format!("{{identities: ['a.b.shop.{end}', '*.b.shop.{end}']}}"),
            false,
            &[("shop/a.b", IP, "shop/api", 80, true, true), ("shop/c.b", IP, "shop/api", 80, true, false)],
        ),
        (
            "{identities: [web.shop.serviceaccount.identity.linkerd.other.example, 'spiffe://cluster.local/ns/shop/sa/web']}".to_owned(),
            false,
            &[("shop/web", IP, "shop/api", 80, false, false)],
        ),
        (
            "{identityRefs: [{kind: ServiceAccount, name: web}, {kind: Group, name: x}]}".to_owned(),
            false,
            &[("shop/web", IP, "shop/api", 80, true, true), ("x/web", IP, "shop/api", 80, false, false)],
        ),
    ];
    for (spec, whole, rows) in table {
        let report = migrated(&format!(
            "{}{}{}",
            server("api", "api", "80"),
            mesh("m", &spec),
            policy("p", API, &of("MeshTLSAuthentication", "m"))
        ));
        check(&report, rows);
        assert_eq!(!said(&report).contains("Stricter"), whole, "{spec}");
    }
}

#[test]
fn server_authorizations_and_access_policies_let_in_whom_they_did() {
    let authorization = |spec: &str| {
        format!(
            "{}{}",
            server("api", "api", "80"),
            object("ServerAuthorization", "s", spec)
        )
    };
    let access = |policy: &str| {
        object(
            "Server",
            "api",
            &format!(
                "{{podSelector: {{matchLabels: {{app: api}}}}, port: 80, proxyProtocol: HTTP/1, accessPolicy: {policy}}}"
            ),
        )
    };
    let open: &[Row] = &[
        ("-", IP, "shop/api", 80, true, true),
        ("-", "8.8.8.8", "shop/api", 80, true, true),
    ];
    let identified: &[Row] = &[
        ("a/b", "8.8.8.8", "shop/api", 80, true, true),
        ("-", IP, "shop/api", 80, false, false),
    ];
    let table: Vec<(String, &[Row])> = vec![
        (
            authorization("{server: {name: api}, client: {unauthenticated: true}}"),
            open,
        ),
        (
            authorization(
                "{server: {selector: {matchLabels: {of: api}}}, client: {meshTLS: {identities: ['*']}}}",
            ),
            identified,
        ),
        (
            authorization("{server: {selector: {matchLabels: {of: b}}}, client: {unauthenticated: true}}"),
            &[("a/b", IP, "shop/api", 80, false, false)],
        ),
        (
            authorization(
                "{server: {name: api}, client: {networks: [{cidr: 10.0.0.0/8}], meshTLS: {serviceAccounts: [{name: web}, {name: x, namespace: far}, {name: no, namespace: true}]}}}",
            ),
            &[
                ("shop/web", IP, "shop/api", 80, true, true),
                ("far/x", IP, "shop/api", 80, true, true),
                ("far/x", "8.8.8.8", "shop/api", 80, false, false),
                ("shop/x", IP, "shop/api", 80, false, false),
            ],
        ),
        (
            authorization("{server: {name: api}, client: {meshTLS: {unauthenticatedTLS: true}}}"),
            &[
                ("a/b", IP, "shop/api", 80, true, true),
                ("-", IP, "shop/api", 80, true, false),
            ],
        ),
        (
            authorization("{server: {name: api}, client: {}}"),
            &[("a/b", IP, "shop/api", 80, false, false)],
        ),
        (access("all-unauthenticated"), open),
        (access("all-authenticated"), identified),
        (access("deny"), &[("a/b", IP, "shop/api", 80, false, false)]),
        (access("perhaps"), &[("a/b", IP, "shop/api", 80, true, false)]),
        // It lets through, and says so.
        (access("audit"), open),
        (
            access("cluster-authenticated"),
            &[
                ("a/b", IP, "shop/api", 80, true, true),
                ("a/b", "8.8.8.8", "shop/api", 80, false, false),
                ("-", IP, "shop/api", 80, false, false),
            ],
        ),
        (
            access("cluster-unauthenticated"),
            &[
                ("-", IP, "shop/api", 80, true, true),
                ("-", "8.8.8.8", "shop/api", 80, false, false),
            ],
        ),
    ];
    for (yaml, rows) in table {
        check(&migrated(&yaml), rows);
    }
    let audited = migrated(&access("audit"));
    assert_eq!(audited.made[0].object["spec"]["dryRun"], true);
    let narrow = migrated_with(
        &access("cluster-unauthenticated"),
        &["--linkerd-cluster-networks", "10.1.0.0/16"],
    );
    check(&narrow, &[("-", "10.2.0.1", "shop/api", 80, false, false)]);
}

#[test]
fn ports_with_names_are_those_of_the_pods_and_else_all() {
    let pod = |name: &str, port: u16| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, labels: {{app: api}}}}, spec: {{containers: [{{ports: [{{name: http, containerPort: {port}}}]}}]}}}}\n"
        )
    };
    let named = server("api", "api", "http");
    let report = migrated(&format!("{named}{}", pod("one", 8080)));
    check(
        &report,
        &[
            ("-", IP, "shop/api", 8080, false, false),
            ("-", IP, "shop/api", 80, true, true),
        ],
    );
    assert_eq!(outcomes(&report)[0].1, Outcome::Translated);
    let deployment = "---\n{apiVersion: apps/v1, kind: Deployment, metadata: {name: d, namespace: shop}, spec: {template: {metadata: {labels: {app: api}}, spec: {containers: [{ports: [{name: http, containerPort: 8081}]}]}}}}\n";
    let report = migrated(&format!("{named}{}{deployment}", pod("one", 8080)));
    check(
        &report,
        &[
            ("-", IP, "shop/api", 8080, false, false),
            ("-", IP, "shop/api", 8081, false, false),
            ("-", IP, "shop/api", 80, true, true),
        ],
    );
    let report = migrated(&named);
    assert!(said(&report).contains("every port"));
    check(
        &report,
        &[
            ("-", IP, "shop/api", 80, true, false),
            ("-", IP, "shop/api", 8080, false, false),
        ],
    );
}

#[test]
fn selectors_that_labels_cannot_say_select_more() {
    let with = |selector: &str| {
        migrated(&object(
            "Server",
            "api",
            &format!("{{podSelector: {selector}, port: 80}}"),
        ))
    };
    let report = with("{matchExpressions: [{key: app, operator: In, values: [api, db]}]}");
    assert_eq!(
        (report.made.len(), outcomes(&report)[0].1),
        (2, Outcome::Translated)
    );
    check(
        &report,
        &[
            ("-", IP, "shop/api", 80, false, false),
            ("-", IP, "shop/db", 80, false, false),
            ("-", IP, "shop/web", 80, true, true),
        ],
    );
    let report = with("{matchExpressions: [{key: app, operator: NotIn, values: [web]}]}");
    check(
        &report,
        &[
            ("-", IP, "shop/api", 80, false, false),
            ("-", IP, "shop/web", 80, true, false),
        ],
    );
    let report = with("{}");
    check(
        &report,
        &[
            ("-", IP, "shop/web", 80, false, false),
            ("-", IP, "other/web", 80, true, true),
        ],
    );
    let report = migrated(&object(
        "Server",
        "api",
        "{externalWorkloadSelector: {}, port: 80}",
    ));
    assert_eq!(outcomes(&report)[0].1, Outcome::NoCounterpart);
}

#[test]
fn what_is_for_routes_lets_nobody_in() {
    let report = migrated(&format!(
        "{}{}{}{}",
        server("api", "api", "80"),
        object("HTTPRoute", "r", "{parentRefs: [{kind: Server, name: api}]}"),
        mesh("unused", WEB),
        policy("p", "{group: policy.linkerd.io, kind: HTTPRoute, name: r}", "")
    ));
    check(&report, &[("shop/web", "10.1.0.1", "shop/api", 80, true, false)]);
    let said = said(&report);
    assert!(
        said.contains("HTTPRoute r")
            && said.contains("no AuthorizationPolicy refers to it")
            && said.contains("Lost routes")
    );
}
