//! What is no good request is refused with a Status, and hurts nobody.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed step is a failed test"
)]

use http::Request;
use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use weir_api_server::TestCluster;

async fn send(client: &Client, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, Value) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", kind);
    let request = request.body(Body::from(body.to_vec())).unwrap();
    let response = client.send(request).await.unwrap();
    let code = response.status().as_u16();
    let body = response.into_body().collect_bytes().await.unwrap();
    (code, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

#[tokio::test]
async fn what_cannot_be_understood_is_refused_with_a_status() {
    let cluster = TestCluster::new().await;
    let namespace = cluster.namespace("http").await;
    cluster.pod(&namespace, "one").create().await;
    let client = cluster.client();
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    let one = format!("{pods}/one");
    let account = format!("/api/v1/namespaces/{namespace}/serviceaccounts/default/token");
    let json = "application/json";
    for (method, path, kind, body, expected) in [
        ("POST", pods.as_str(), json, "{", 400),
        ("POST", &pods, json, "[]", 400),
        // An object without anything, which is understood.
        ("POST", &pods, json, "null", 422),
        (
            "POST",
            &pods,
            json,
            r#"{"kind":"Service","apiVersion":"v1","metadata":{"name":"x"}}"#,
            400,
        ),
        ("POST", &pods, json, r#"{"metadata":{"name":["x"]}}"#, 400),
        (
            "POST",
            &pods,
            json,
            r#"{"metadata":{"name":"x"},"spec":{"containers":"x"}}"#,
            400,
        ),
        (
            "POST",
            &pods,
            json,
            r#"{"metadata":{"name":"x","namespace":"other"}}"#,
            400,
        ),
        ("PUT", &one, json, r#"{"metadata":{"name":"two"}}"#, 400),
        ("PATCH", &one, json, "{}", 415),
        ("POST", &pods, "application/vnd.kubernetes.other", "k8s", 415),
        ("PATCH", &one, "application/merge-patch+json", "{", 400),
        (
            "PATCH",
            &one,
            "application/json-patch+json",
            r#"{"op":"add"}"#,
            400,
        ),
        ("GET", &format!("{pods}?labelSelector=a%20b%20c"), json, "", 400),
        (
            "GET",
            &format!("{pods}?fieldSelector=spec.none%3Dx"),
            json,
            "",
            400,
        ),
        ("GET", &format!("{pods}?continue=garbage"), json, "", 400),
        (
            "GET",
            &format!("{pods}?resourceVersionMatch=Exact"),
            json,
            "",
            422,
        ),
        (
            "GET",
            &format!("{pods}?watch=true&sendInitialEvents=true"),
            json,
            "",
            422,
        ),
        ("GET", "/api/v1/namespaces/none/pods/none", json, "", 404),
        ("PUT", &pods, json, "{}", 405),
        ("POST", &account, json, "{", 400),
    ] {
        let (code, status) = send(&client, method, path, kind, body.as_bytes()).await;
        assert_eq!(code, expected, "{method} {path} {body}: {status}");
        assert_eq!(status["kind"], "Status", "{method} {path} {body}");
        assert_eq!(status["code"], expected, "{method} {path} {body}");
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let cluster = TestCluster::new().await;
    let namespace = cluster.namespace("http").await;
    let path = format!("/api/v1/namespaces/{namespace}/configmaps");
    let body = json!({"metadata": {"name": "x"}, "data": {"a": "b".repeat(4 << 20)}}).to_string();
    let (code, _) = send(
        &cluster.client(),
        "POST",
        &path,
        "application/json",
        body.as_bytes(),
    )
    .await;
    assert_eq!(code, 413);
}

/// Every kind of nonsense at every path: answered, and never with an error of the server's own.
#[tokio::test]
async fn nonsense_never_stops_the_server() {
    let cluster = TestCluster::new().await;
    if cluster.stand_in().is_none() {
        // Such writes are not for a cluster that others use.
        return;
    }
    let namespace = cluster.namespace("http").await;
    let pod = cluster.pod(&namespace, "one").create().await;
    let client = cluster.client();
    let values = [
        "",
        "null",
        "true",
        "0",
        "\"x\"",
        "[]",
        "{}",
        "[[[]]]",
        r#"{"metadata":null}"#,
        r#"{"metadata":[]}"#,
        r#"{"metadata":{"name":"one","labels":[1],"managedFields":"x"}}"#,
        r#"{"metadata":{"name":"one","managedFields":[{"fieldsV1":{"f:a":1,"k:x":{},"v:":{}}}]}}"#,
        r#"{"metadata":{"name":"one"},"spec":[]}"#,
        r#"{"metadata":{"name":"one"},"spec":{"containers":[null]},"status":3}"#,
        r#"{"metadata":{"name":"one"},"spec":{"ports":[1],"versions":[1],"names":1,"taints":1}}"#,
        r#"{"metadata":{"name":"one"},"stringData":3,"data":[],"endpoints":[1],"ports":{},"regarding":1}"#,
        r#"{"spec":{"audiences":3,"token":[],"boundObjectRef":"x","resourceAttributes":1,"expirationSeconds":-9}}"#,
        r#"[{"op":"remove","path":""},{"op":"add","path":"/metadata","value":1}]"#,
        r#"[{"op":"add","path":"/spec/containers/-5","value":1}]"#,
        r#"{"$patch":"replace","spec":{"containers":[{"$patch":"delete"},1]},"$deleteFromPrimitiveList/x":1}"#,
    ];
    let types = [
        "application/json",
        "application/merge-patch+json",
        "application/json-patch+json",
        "application/strategic-merge-patch+json",
        "application/apply-patch+yaml",
    ];
    let mut paths = vec![
        "/".to_owned(),
        "/api/v1/x/y/z/a/b/c".to_owned(),
        "/apis//v1/%00%ff%".to_owned(),
    ];
    for plural in [
        "pods",
        "services",
        "secrets",
        "events",
        "configmaps",
        "serviceaccounts",
    ] {
        for rest in ["", "/one", "/one/status", "/one/token", "/default/token"] {
            paths.push(format!(
                "/api/v1/namespaces/{namespace}/{plural}{rest}?fieldManager=x&force=true"
            ));
        }
    }
    for group in [
        "discovery.k8s.io/v1/namespaces/x/endpointslices",
        "events.k8s.io/v1/namespaces/default/events",
    ] {
        paths.push(format!("/apis/{group}"));
        paths.push(format!("/apis/{group}/one?fieldManager=x"));
    }
    for cluster_wide in [
        "/api/v1/nodes",
        "/api/v1/namespaces",
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        "/apis/authentication.k8s.io/v1/tokenreviews",
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
    ] {
        paths.push(cluster_wide.to_owned());
        paths.push(format!("{cluster_wide}/one?fieldManager=x"));
        paths.push(format!("{cluster_wide}/one/status?fieldManager=x"));
    }
    for path in &paths {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            let types = if method == "PATCH" {
                &types[1..]
            } else {
                &types[..1]
            };
            for body in values {
                for kind in types {
                    let (code, answer) = send(&client, method, path, kind, body.as_bytes()).await;
                    assert!(code < 500, "{method} {path} {kind} {body}: {code} {answer}");
                }
            }
        }
    }
    assert!(cluster.namespace("after").await.starts_with("after-"));
    drop(pod);
}

#[tokio::test]
async fn the_kubeconfig_leads_to_the_server() {
    let cluster = TestCluster::new().await;
    let faults = cluster.faults();
    for text in [cluster.kubeconfig().to_owned(), faults.kubeconfig()] {
        let parsed = Kubeconfig::from_yaml(&text).unwrap();
        let config = Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default())
            .await
            .unwrap();
        let version = Client::try_from(config)
            .unwrap()
            .apiserver_version()
            .await
            .unwrap();
        assert_eq!(version.major, "1");
    }
    for path in ["/readyz", "/livez"] {
        assert_eq!(send(&cluster.client(), "GET", path, "", b"").await.0, 200);
    }
}

#[tokio::test]
async fn what_is_served_nowhere_is_said_with_a_status_only_by_the_groups_of_the_server() {
    let cluster = TestCluster::new().await;
    let client = cluster.client();
    for (path, has_status) in [
        ("/api/v1/nonsense", true),
        ("/api/v1/namespaces/default/nodes/x", true),
        ("/apis/apps/v9/daemonsets", true),
        ("/apis/none.weir.dev/v1/things", false),
        ("/nonsense", false),
    ] {
        let (code, status) = send(&client, "GET", path, "application/json", b"").await;
        assert_eq!((code, status["kind"] == "Status"), (404, has_status), "{path}");
    }
}
