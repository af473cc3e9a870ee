//! The map with mutual TLS, asked by curl.

use std::{net::SocketAddr, path::Path, process::Stdio};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::process::Command;
use weir_hubble::{
    map::{Access, Map},
    tls::{Tls, TlsFiles},
};

use crate::{flows::connect, served};

const SERVER: &str = "relay.hubble.weir.dev";

/// An authority in `NAME.pem`, and for each of these names a certificate in `NAME-of.pem` and its key beside it.
fn authority(folder: &Path, name: &str, of: &[&str]) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Other than those that it issues for: OpenSSL takes these for their own issuers otherwise.
    params
        .distinguished_name
        .push(DnType::CommonName, format!("{name} authority"));
    let root = params.self_signed(&key).unwrap();
    std::fs::write(folder.join(format!("{name}.pem")), root.pem()).unwrap();
    let issuer = Issuer::new(params, key);
    for one in of {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![(*one).to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let file = folder.join(format!("{name}-{one}"));
        std::fs::write(file.with_extension("dev.pem"), certificate.pem()).unwrap();
        std::fs::write(file.with_extension("dev.key"), key.serialize_pem()).unwrap();
    }
}

/// curl's exit code, and what it printed.
async fn curl(
    folder: &Path,
    address: SocketAddr,
    path: &str,
    shown: Option<&str>,
    more: &[&str],
) -> (i32, String) {
    let port = address.port();
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--max-time", "10", "--cacert"])
        .arg(folder.join("own.pem"))
        .args(["--resolve", &format!("{SERVER}:{port}:127.0.0.1")])
        .args(more)
        .arg(format!("https://{SERVER}:{port}{path}"));
    if let Some(shown) = shown {
        curl.arg("--cert").arg(folder.join(format!("{shown}.pem")));
        curl.arg("--key").arg(folder.join(format!("{shown}.key")));
    }
    let output = curl.stdin(Stdio::null()).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code().unwrap(), text)
}

#[tokio::test]
async fn with_mutual_tls_the_certificate_says_who_sees_what() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let all = "all.hubble.weir.dev";
    authority(
        folder,
        "own",
        &[SERVER, all, "shop.hubble.weir.dev", "nobody.hubble.weir.dev"],
    );
    authority(folder, "other", &[all]);
    let tls = Tls::new(&TlsFiles {
        certificate: folder.join(format!("own-{SERVER}.pem")),
        key: folder.join(format!("own-{SERVER}.key")),
        roots: folder.join("own.pem"),
        clients: vec![
            (all.to_owned(), None),
            ("shop.hubble.weir.dev".to_owned(), Some(vec!["shop".to_owned()])),
        ],
    });
    let fill = |map: &Map| {
        connect(map, "shop/web", "shop/cart", "tunnel", 2);
        connect(map, "pay/payments", "data/postgres", "tunnel", 2);
    };
    let (address, _) = served(Access::certificates(tls.unwrap()), fill).await;
    let graph = async |shown| curl(folder, address, "/graph", shown, &[]).await;
    let (code, text) = graph(Some("own-all.hubble.weir.dev")).await;
    assert_eq!(code, 0);
    assert!(
        text.contains("shop/cart") && text.contains("data/postgres"),
        "{text}"
    );
    let (code, text) = graph(Some("own-shop.hubble.weir.dev")).await;
    assert_eq!(code, 0);
    assert!(
        text.contains("shop/cart") && !text.contains("data/postgres"),
        "{text}"
    );
    for stranger in [
        None,
        Some("other-all.hubble.weir.dev"),
        Some("own-nobody.hubble.weir.dev"),
    ] {
        let (code, text) = graph(stranger).await;
        assert!(code != 0 && text.is_empty(), "{stranger:?}: {code} {text}");
    }
    // The rest is as without: nothing for pages of other sites, and only what is served.
    let shown = Some("own-all.hubble.weir.dev");
    let status = [
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code} %{http_version}",
    ];
    let (_, text) = curl(folder, address, "/", shown, &status).await;
    assert_eq!(text, "200 1.1", "browsers that could do more are not offered it");
    let elsewhere = [&status[..], &["--header", "sec-fetch-site: cross-site"]].concat();
    let (_, text) = curl(folder, address, "/graph", shown, &elsewhere).await;
    assert!(text.starts_with("403"), "{text}");
}
